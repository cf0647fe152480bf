"""The sections of a recipe: every field with its default, its range and its meaning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Auto = Literal["auto"]
Side = Annotated[int, Field(ge=8, le=4096)]
Share = Annotated[float, Field(gt=0, le=1)]
Level = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """Base of all sections: what is set once stays, and a key that is not known is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BackboneConfig(Section):
    """The network that turns a picture into features."""

    name: str = Field(
        "tf_efficientnet_lite0",
        description="Any timm model. The default is small, fast on a CPU and its ImageNet "
        "weights come as a package.",
    )
    weights: str = Field(
        "embedded",
        description="embedded (from the package installed with polytag: no network), hub (timm "
        "downloads them), none (random), or a .safetensors / .pth file.",
    )


class PreprocessConfig(Section):
    """From a picture of any size to the square the network sees."""

    size: Side | Auto = Field(
        "auto",
        description="Side of the square in pixels; auto: what the weights were trained with.",
    )
    resize: Literal["crop", "squash", "pad"] = Field(
        "crop",
        description="crop: the middle square, as in ImageNet training. squash and pad lose no "
        "border: take them when an attribute can stand at the edge. (Chosen on 1,485 street "
        "photos: macro AP .67 with crop, .61 with squash, .60 with pad.)",
    )
    crop_fraction: Share | Auto = Field(
        "auto",
        description="With resize = crop: the share of the shorter side that is kept; auto: what "
        "the weights were judged with (mostly 0.875).",
    )
    interpolation: Literal["auto", "bilinear", "bicubic", "lanczos"] = Field(
        "auto", description="How pixels are resampled; auto: what the weights were trained with."
    )
    mean: tuple[Level, Level, Level] | Auto = Field(
        "auto",
        description="Subtracted from red, green and blue in [0, 1], inside the network; auto: as "
        "the weights were trained. For weights of your own: what your training subtracted.",
    )
    std: tuple[Share, Share, Share] | Auto = Field(
        "auto", description="What they are divided by then."
    )


class FeaturesConfig(Section):
    """What is taken from the frozen network."""

    layers: Literal["all", "last"] = Field(
        "all",
        description="all: mean and standard deviation of every stage of a CNN (class token and "
        "patch mean of the last four blocks of a transformer), and the last layer; last: the "
        "last layer alone (macro AP .05 lower where measured).",
    )
    flip: bool = Field(
        True, description="Train on the mirrored picture too. False where left and right differ."
    )
    engine: Literal["auto", "onnxruntime", "openvino", "torch"] = Field(
        "auto",
        description="What runs the frozen network; auto: on a CPU what a short trial finds the "
        "fastest of onnxruntime and, where it is installed, openvino; else torch.",
    )
    batch: int = Field(32, ge=1, description="Pictures at a time; more gains nothing on a CPU.")


class ProbeConfig(Section):
    """Logistic regression of all attributes on the frozen features."""

    l2: Strength | Auto = Field(
        "auto",
        description="Strength of the L2 penalty on standardised features; auto: chosen by "
        "log loss inside the training part.",
    )
    l2_grid: tuple[Strength, ...] = Field(
        (300.0, 30.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01),
        min_length=1,
        description="What auto chooses from, strongest first: at 300 hardly more than the base "
        "rates is left, which is right where the pictures show nothing; half decades where the "
        "choice matters.",
    )
    max_iterations: int = Field(200, ge=1, description="Bound on the solver; it needs about 20.")
    tolerance: float = Field(
        1e-6,
        gt=0,
        lt=1,
        description="The solver stops when an attribute's objective falls by less than this "
        "share in an iteration.",
    )


class SplitConfig(Section):
    """How rows are held out, so that every number is measured on rows that chose nothing."""

    folds: int = Field(
        5,
        ge=3,
        le=50,
        description="probe: each picture is predicted by a model trained on the other folds. At "
        "least 3: two to choose in, one to judge.",
    )
    holdout: Annotated[float, Field(ge=0, le=0.9)] | Literal["folds"] = Field(
        0.0,
        description="finetune: share of the pictures that is set aside to judge the model, and "
        "nothing else. 0: all are trained on, and the run has no honest number. folds: each of "
        "split.folds parts is held out once, and one more model, trained on all, is kept.",
    )
    choose: float = Field(
        0.0,
        ge=0,
        le=0.9,
        description="finetune: share of the other pictures that decides when to stop and what to "
        "keep.",
    )

    group_by: str = Field(
        "",
        description="A column of the table (patient, product, video): rows with the same text "
        "stay on one side of every split, as pictures that look the same always do.",
    )
    given: str = Field(
        "",
        description="Your own split: a column of the table, or a .csv file with the columns image "
        "and split or fold (another run's splits.csv too), of fold numbers or of the words "
        "train, val, test.",
    )

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the table that say how rows are split; they are no labels."""
        given = "" if self.given.endswith(".csv") else self.given
        return tuple(name for name in (self.group_by, given) if name)


class DecisionsConfig(Section):
    """How probabilities are corrected, and when an attribute is called present."""

    calibrate: Literal["auto", "none", "temperature", "platt", "beta"] = Field(
        "auto",
        description="Correction of probabilities, fitted on predictions of rows that the model "
        "had not seen; auto: by the number of labels. It changes no order.",
    )
    target: str | Annotated[float, Field(gt=0, lt=1)] = Field(
        "f1",
        description="What thresholds are chosen for, one an attribute: f1 (f0.5, f2), "
        "precision=0.9, recall=0.9, cost=5 (a miss costs as much as five false alarms), "
        "prevalence; or a number: that threshold for all.",
    )
    max_error: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="Above 0: what cannot be decided with at most this share of errors, at "
        "decisions.confidence, is called unsure.",
    )
    confidence: float = Field(0.9, gt=0.5, lt=1, description="Of the bound on these errors.")


class DataConfig(Section):
    """Where a run's data came from; written by a run, so that its config.toml can repeat it."""

    labels: str = Field("", description="The label table.")
    images: str = Field("", description="The folder of pictures.")
    attributes: tuple[str, ...] = Field((), description="As given with --attributes.")
    ignore: tuple[str, ...] = Field((), description="As given with --ignore.")
    values: str = Field("", description="As given with --values.")
    image_column: str = Field("", description="As given with --image-column.")
