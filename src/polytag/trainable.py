"""Which weights are trained, at which rate, by which optimiser; and their running mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from polytag.backbone import Backbone
from polytag.config import StageConfig, TrainingConfig
from polytag.errors import RecipeError
from polytag.model import Classifier

OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": lambda groups, **options: torch.optim.SGD(groups, momentum=0.9, **options),
}
_NORMS = (nn.modules.batchnorm._BatchNorm,)


def frozen_depth(backbone: Backbone, frozen: float | str) -> int:
    """Return the depth down to which a backbone is frozen; -1: not at all.

    Raises:
        RecipeError: The backbone has not so many blocks.
    """
    blocks = max(backbone.depths().values())
    if frozen == "nothing":
        return -1
    if isinstance(frozen, int) and frozen > blocks:
        raise RecipeError(
            f"{backbone.name} has fewer blocks than are to be frozen",
            where="stages.frozen",
            got=str(frozen),
            expected=f"at most {blocks}, backbone, or nothing",
            fix="--set stages.0.frozen=backbone (stages.1 in a recipe of two stages)",
        )
    if isinstance(frozen, float):
        return int(frozen * blocks)
    return frozen if isinstance(frozen, int) else blocks


def freeze(model: Classifier, frozen: float | str, *, depthwise: bool = False) -> list[str]:
    """Say which parameters are trained from now on, and return their names.

    Args:
        model: Backbone and head; the head is always trained.
        frozen: ``nothing``, ``backbone``, or a number: the stem and so many blocks, below 1 a
            share of them.
        depthwise: Whether depthwise convolutions are frozen wherever they stand.

    Raises:
        RecipeError: The backbone has not so many blocks.
    """
    depths, deepest = model.backbone.depths(), frozen_depth(model.backbone, frozen)
    for name, parameter in model.named_parameters():
        depth = depths.get(name.removeprefix("backbone."))
        parameter.requires_grad = depth is None or depth > deepest
    for module in model.modules() if depthwise else ():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            module.weight.requires_grad = False
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def set_modes(model: nn.Module, *, freeze_norm: bool) -> None:
    """Put what is trained into training mode, and what is frozen into evaluation mode.

    So a frozen layer keeps its BatchNorm statistics and drops nothing out; with ``freeze_norm``
    trained BatchNorm layers keep theirs too.
    """
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        frozen = parameters and not any(p.requires_grad for p in parameters)
        if frozen or (freeze_norm and isinstance(module, _NORMS)):
            module.eval()


def parameter_groups(model: Classifier, stage: StageConfig, layer_decay: float) -> list[Any]:
    """Return an optimiser's groups of what is trained, one for each learning rate.

    Args:
        model: After `freeze`.
        stage: Rates of the head and of the backbone's last block.
        layer_decay: A block's rate is that of the last one times this to the power of how many
            blocks lie behind it (BEiT's rule, Bao et al. 2021, arXiv 2106.08254, but for the last
            block, which has its own rate here).

    Returns:
        Dictionaries of ``params``, their ``names``, and the rate ``lr``, also kept as ``base``;
        the head's group is the first.
    """
    depths = model.backbone.depths()
    last = max(depths.values())
    of_backbone = stage.lr if stage.backbone_lr == "same" else stage.backbone_lr
    groups: dict[float, dict[str, Any]] = {}
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for name, parameter in sorted(named, key=lambda pair: pair[0].startswith("backbone.")):
        rate = stage.lr
        if name.startswith("backbone."):
            behind = last - depths[name.removeprefix("backbone.")]
            rate = of_backbone * layer_decay**behind
        group = groups.setdefault(rate, {"params": [], "names": [], "lr": rate, "base": rate})
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def make_optimiser(
    model: Classifier, stage: StageConfig, config: TrainingConfig
) -> torch.optim.Optimizer:
    """Return the stage's optimiser over what is trained."""
    groups = parameter_groups(model, stage, config.layer_decay)
    return OPTIMISERS[config.optimiser](groups, lr=stage.lr, weight_decay=config.weight_decay)


def optimiser_state(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return what an optimiser remembers of its steps, by number of the weight and name."""
    return {
        f"{index}.{name}": torch.as_tensor(value)
        for index, slots in optimiser.state_dict()["state"].items()
        for name, value in slots.items()
    }


def load_optimiser(optimiser: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    """Give an optimiser back what `optimiser_state` returned."""
    whole = optimiser.state_dict()
    for key, value in state.items():
        index, _, name = key.partition(".")
        whole["state"].setdefault(int(index), {})[name] = value
    optimiser.load_state_dict(whole)


class RunningMean:
    """Exponential running mean of a model's weights and statistics.

    After t updates the start weighs ``decay**t``, and what came i updates ago
    ``(1 - decay) decay**i``.

    Args:
        state: What it starts from, by name; copied.
        decay: In [0, 1).

    Attributes:
        state: The mean, by name; what is not a float number is the latest.

    Example:
        >>> mean = RunningMean({"w": torch.zeros(1)}, decay=0.5)
        >>> mean.update({"w": torch.ones(1)})
        >>> mean.state["w"].item()
        0.5
    """

    def __init__(self, state: dict[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.state = copied(state)

    @torch.no_grad()
    def update(self, state: dict[str, Tensor]) -> None:
        """Take the model's state after a step."""
        for name, mean in self.state.items():
            if mean.is_floating_point():
                mean.lerp_(state[name].to(mean.dtype), 1 - self.decay)
            else:
                mean.copy_(state[name])


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state that no later step changes."""
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Say whether no number is infinite or NaN."""
    listed = [tensor for tensor in tensors if tensor.is_floating_point()]
    # The largest of each; a sum of squares could overflow where no number does.
    largest = torch._foreach_norm(listed, ord=math.inf) if listed else ()
    return not largest or bool(torch.stack(largest).isfinite().all())
