"""What there is to compute on."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from polytag import devices
from polytag.devices import resolve_device
from polytag.errors import RecipeError


def test_the_processor_is_always_there():
    assert resolve_device("cpu") == "cpu"


def test_auto_takes_an_accelerator_if_there_is_one():
    accelerated = torch.cuda.is_available() or torch.backends.mps.is_available()
    assert (resolve_device("auto") != "cpu") == accelerated


@pytest.mark.parametrize("device", ["tpu", "", "cuda:x", "gpu", "cuda:99"])
def test_a_device_that_is_not_here_is_refused_with_those_that_are(device):
    with pytest.raises(RecipeError, match=r"device: no such device here; got .*expected auto, cpu"):
        resolve_device(device)


def test_where_there_can_be_no_gpu_torch_is_not_asked(monkeypatch):
    monkeypatch.setattr(devices, "_may_have_gpu", lambda: False)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert resolve_device("auto") == "cpu"


def test_the_processor_needs_no_torch():
    program = (
        "import sys, polytag.devices as d; d.resolve_device('cpu'); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
