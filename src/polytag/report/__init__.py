"""report.html: what a run can and cannot tell, as one file that loads nothing from anywhere."""

from polytag.report.material import Duplicate, Material, Suspect
from polytag.report.page import write_report
from polytag.report.shown import shown_numbers

__all__ = ["Duplicate", "Material", "Suspect", "shown_numbers", "write_report"]
