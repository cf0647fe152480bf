"""The sections of a recipe that trains a network: head, loss, sampler, augmentation, stages."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from polytag.config.sections import Section

Chance = Annotated[float, Field(ge=0, le=1)]
Jitter = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class HeadConfig(Section):
    """What answers for the attributes on top of the backbone."""

    kind: Literal["linear", "mlp", "separate", "attention"] = Field(
        "linear",
        description="linear; mlp: one hidden layer for all attributes; separate: a small mlp an "
        "attribute; attention: a learned query an attribute looks at all positions (ML-Decoder).",
    )
    hidden: int = Field(
        256, ge=1, description="Width of the mlp, of each separate head, of a query."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Before the last layer.")
    init: Literal["random", "probe"] = Field(
        "random",
        description="probe: a linear head starts as the logistic regression of [probe], fitted "
        "on the training rows' features, so that training begins where the probe ends.",
    )


class LossConfig(Section):
    """What is minimised over the known cells."""

    name: Literal["bce", "focal", "asymmetric", "class_balanced"] = Field(
        "bce", description="Only bce without weights gives probabilities as they are."
    )
    per: Literal["cell", "attribute"] = Field(
        "cell", description="Mean over known cells, or over attributes of their known cells' mean."
    )
    pos_weight: Literal["none", "balanced"] = Field(
        "none",
        description="balanced: present cells weigh n-/n+, counted on the known cells trained on; "
        "not with class_balanced, which has weights of its own.",
    )
    pos_weight_cap: float = Field(20.0, ge=0, description="Bound on that weight; 0: none.")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Targets become (1-s) y + s/2.")
    gamma: float = Field(2.0, ge=0, description="focal: how little easy cells count.")
    alpha: Chance | Literal["none"] = Field("none", description="focal: share of present cells.")
    gamma_negative: float = Field(4.0, ge=0, description="asymmetric: of absent cells.")
    gamma_positive: float = Field(1.0, ge=0, description="asymmetric: of present cells.")
    clip: float = Field(
        0.05, ge=0, lt=1, description="asymmetric: absent cells below this probability count 0."
    )
    beta: float = Field(
        0.999,
        ge=0,
        lt=1,
        description="class_balanced: from 0 (no weights) towards 1 (inverse frequency).",
    )


class SamplerConfig(Section):
    """Which rows an epoch takes, in which order."""

    kind: Literal["shuffled", "rare"] = Field(
        "shuffled",
        description="shuffled: every row once; rare: rows drawn with replacement, the more often "
        "the rarer the rarest attribute they show.",
    )
    hard: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of every batch that is drawn by current loss (hard-example mining).",
    )


class AugmentConfig(Section):
    """How a training picture is varied, in this order; 0 leaves a step out."""

    crop: Literal["none", "random", "resized"] = Field(
        "none",
        description="none: the square that is judged; random: a square of crop_fraction of the "
        "shorter side, anywhere; resized: anywhere, of random area and proportions.",
    )
    crop_area: Annotated[float, Field(gt=0, le=1)] = Field(
        0.6, description="resized: least share of the largest square's area."
    )
    flip: Chance = Field(0.0, description="Chance of mirroring left and right.")
    flip_vertical: Chance = Field(0.0, description="Chance of turning upside down.")
    rotate: float = Field(0.0, ge=0, le=180, description="Up to so many degrees either way.")
    translate: float = Field(0.0, ge=0, le=1, description="Moved by up to this share of the side.")
    shift_scale_rotate: Chance = Field(
        0.0, description="Chance of one move (6 %), zoom (10 %) and turn (15 degrees) together."
    )
    brightness: Jitter = Field(0.0, description="Factor from 1 - b to 1 + b.")
    contrast: Jitter = Field(0.0, description="Factor from 1 - c to 1 + c.")
    saturation: Jitter = Field(0.0, description="Factor from 1 - s to 1 + s.")
    hue: float = Field(0.0, ge=0, le=0.5, description="Turn of the colour wheel, up to this share.")
    blur: Chance = Field(0.0, description="Chance of a Gaussian blur of .1 to 2 pixels.")
    noise: Chance = Field(0.0, description="Chance of Gaussian noise of up to 12 grey levels.")
    coarse_dropout: Chance = Field(
        0.0, description="Chance that 1 to 8 squares of up to an eighth of the side turn grey."
    )
    erase: Chance = Field(
        0.0, description="Chance that one rectangle of 2 to 33 % of the area turns grey."
    )
    mixup: float = Field(
        0.0,
        ge=0,
        description="Alpha of MixUp: two pictures blended; a cell is known only if both are.",
    )
    cutmix: float = Field(
        0.0,
        ge=0,
        description="Alpha of CutMix: a rectangle of another picture; with mixup, each batch "
        "takes one of the two.",
    )


class TrainingConfig(Section):
    """How the network's weights are moved."""

    batch: int = Field(32, ge=1, description="Pictures at a time, of all processes together.")
    accumulate: int = Field(
        1, ge=1, description="Batches to one step: batch 8, accumulate 4 is a step of 32."
    )
    optimiser: Literal["adamw", "adam", "sgd"] = Field("adamw", description="sgd: momentum .9.")
    weight_decay: float = Field(0.01, ge=0, description="Of all trained weights.")
    schedule: Literal["constant", "cosine", "one_cycle", "plateau"] = Field(
        "constant",
        description="Of the learning rate over a stage; plateau: lowered when the choosing rows' "
        "score stops improving.",
    )
    warmup: float = Field(
        0.0, ge=0, lt=1, description="cosine: share of the stage in which the rate rises."
    )
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.5, description="plateau: what the rate is multiplied with."
    )
    plateau_patience: int = Field(
        2, ge=0, description="plateau: epochs without improvement that are borne."
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="What a block's rate is multiplied with for every block behind it."
    )
    clip: float = Field(0.0, ge=0, description="Bound on the gradient's norm; 0: none.")
    ema: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Half-life of the running mean of the weights, as a share of the stage; the "
        "mean is what is judged and kept. A tenth fits runs of any length; 0: no mean.",
    )
    freeze_norm: bool = Field(
        False, description="Keep the statistics of all BatchNorm layers, trained ones too."
    )
    freeze_depthwise: bool = Field(
        False,
        description="Keep the weights of depthwise convolutions: few of a network's weights, but "
        "on a CPU their gradient takes about a quarter of the time.",
    )
    monitor: Literal["loss", "macro_ap"] = Field(
        "loss", description="The choosing rows' score that plateau, early_stop and keep go by."
    )
    early_stop: int = Field(
        0, ge=0, description="End a stage after so many epochs without improvement; 0: never."
    )
    keep: Literal["last", "best"] = Field(
        "last", description="best: the epoch of the best score on the choosing rows."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="auto: bf16 on a GPU that has it, and on a CPU that has it above frozen layers "
        "that are kept; else fp32.",
    )
    cache: Literal["off", "auto", "on"] = Field(
        "off",
        description="Compute what frozen layers make of the pictures once and keep it, in "
        "cache_views variations of each picture. auto: on a CPU where it can be; on a GPU where it "
        "is found to take less time.",
    )
    cache_views: int = Field(
        8, ge=1, description="Variations of a picture that are kept, as far as cache_gb allows."
    )
    cache_gb: Positive = Field(4.0, description="Bound on what is kept, in 1e9 bytes.")
    checkpoint_minutes: Positive = Field(
        5.0, description="A checkpoint is kept after every epoch, and within it so often."
    )


class StageConfig(Section):
    """A part of the training with its own frozen layers and learning rate."""

    name: str = Field("all", min_length=1, description="In the epoch lines and history.csv.")
    epochs: int = Field(10, ge=1, description="Passes over the training rows.")
    lr: Positive = Field(1e-4, description="Learning rate of the head.")
    backbone_lr: Positive | Literal["same"] = Field(
        "same", description="Learning rate of the backbone's last block; same: as the head."
    )
    frozen: (
        Annotated[int, Field(ge=0)]
        | Annotated[float, Field(gt=0, lt=1)]
        | Literal["nothing", "backbone"]
    ) = Field(
        "nothing",
        description="What is not trained: nothing, the whole backbone, or its stem and so many "
        "of its blocks, counted from the picture; below 1, that share of its blocks. Frozen "
        "layers keep their BatchNorm statistics.",
    )
