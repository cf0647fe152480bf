"""A user's own trained network, head and all, becomes a run."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from polytag import runs
from polytag.artefacts import versions
from polytag.backbone import Backbone, load_backbone
from polytag.card import imported_card
from polytag.config import HeadConfig, Recipe, load_recipe, to_toml
from polytag.errors import ModelError, RecipeError
from polytag.files import write_json, write_text
from polytag.graph import write_classifier
from polytag.heads import Linear
from polytag.images import content_hash
from polytag.model import Classifier
from polytag.modelfile import ModelInfo
from polytag.scorecard import evaluate_arrays
from polytag.weights import fit_state, read_state

# What the last layer is called in torchvision, timm and older collections.
_HEADS = ("fc", "_fc", "classifier", "head", "head_dist", "last_linear", "linear", "output")
_AS_IT_IS = {"decisions.calibrate": "none", "decisions.target": 0.5}
_CHANGED = ("decisions.target", "title")
_NOTE = (
    "Nothing was measured here, and what it was trained on is not known: `polytag evaluate` "
    "measures it on pictures that it was not trained on."
)
_CONFIG = (
    "# Imported: weights.safetensors holds the head too. `polytag train --recipe config.toml` fits "
    "a new\n# head, the probe below, on this network.\n\n"
)


def import_weights(
    file: str | os.PathLike[str],
    *,
    backbone: str,
    attributes: Sequence[str],
    changes: Mapping[str, object] | None = None,
    name: str | None = None,
    folder: str | os.PathLike[str] = "runs",
) -> runs.Run:
    """Make a run of a network that was trained elsewhere, its head included.

    The file is read as other weights are: no code in it runs, wrapping dictionaries and prefixes
    are taken off, and a torchvision network is matched to timm's of the same layers. Its head must
    be one linear layer whose outputs are logits. Pictures are normalised with the mean and the
    deviation of timm's own weights for ``backbone``; a training that did otherwise, or did not
    normalise at all (mean 0, std 1), has to say so by ``preprocess.mean`` and ``preprocess.std``.

    Args:
        file: ``.pth``, ``.pt``, ``.bin`` or ``.safetensors``.
        backbone: timm's name of the network that the file was made with.
        attributes: What the K outputs of its head stand for, in their order.
        changes: Dotted keys under ``preprocess``, ``title`` or ``decisions.target`` (a number:
            there is nothing to choose a threshold by), and their values: how pictures were
            brought to size when it was trained.
        name: Of the run; None: ``import-1``, ``import-2`` ...
        folder: Where run folders are.

    Returns:
        The run. It has no numbers, as nothing was measured.

    Raises:
        RecipeError: No such network, a change without effect, names that are not K different ones.
        ModelError: The file cannot be read, or is not such a network with such a head.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from polytag.backbone import import_timm
        >>> network = import_timm().create_model("test_resnet", num_classes=2)
        >>> tiny = {"preprocess.size": 32}
        >>> with tempfile.TemporaryDirectory() as place:
        ...     torch.save(network.state_dict(), f"{place}/own.pth")
        ...     run = import_weights(f"{place}/own.pth", backbone="test_resnet",
        ...                          attributes=["red", "blue"], changes=tiny, folder=place)
        ...     run.path.name, run.metrics["macro"]["ap"]["value"]
        ('import-1', None)
    """
    start, path = time.perf_counter(), Path(file)
    recipe = _recipe(backbone, changes or {})
    threshold = _threshold(recipe)
    names = _different(attributes)
    runs.check_run_name(Path(folder), name)
    state = read_state(path)
    body = load_backbone(recipe.backbone, recipe.preprocess, recipe.features)
    model = _filled(body, state, names, str(path))
    nothing = np.empty((0, len(names)))
    evaluation = evaluate_arrays(names, nothing, nothing, [threshold] * len(names))
    whole, digest = evaluation.to_dict(), content_hash(path)
    metrics = whole | {
        "method": "import",
        "rows": 0,
        "judged": 0,
        "skipped": 0,
        "imported": {"file": path.name, "sha256": digest},
        "note": _NOTE,
    }
    info = ModelInfo(
        attributes=names,
        thresholds=(threshold,) * len(names),
        preprocess=body.spec,
        recipe=recipe.model_dump(mode="json", exclude={"data"}) | {"method": "import"},
        metrics={"macro": whole["macro"], "over": whole["over"]},
        versions=versions(),
    )
    run = runs.new_run_folder(Path(folder), name, "import")
    try:
        weights = run / "weights.safetensors"
        model.save(weights, names)
        write_text(run / "config.toml", _CONFIG + to_toml(_resolved(recipe, body, weights)))
        source = f"`{path.name}`, sha256 {digest}"
        write_text(run / "README.md", imported_card(info, recipe, source, _NOTE))
        metrics["seconds"] = round(time.perf_counter() - start, 1)
        write_json(run / "metrics.json", metrics)
        write_classifier(model, info, run / "model.onnx")
    finally:
        if not (run / "model.onnx").is_file():
            shutil.rmtree(run, ignore_errors=True)
    runs.mark_latest(run)
    return runs.Run(run, evaluation, metrics)


def _recipe(backbone: str, changes: Mapping[str, object]) -> Recipe:
    """Return the recipe whose network has the layers of the file, and random weights."""
    for key in changes:
        if not key.startswith("preprocess.") and key not in _CHANGED:
            expected = f"preprocess.*, {' or '.join(_CHANGED)}"
            raise RecipeError("no effect on an import", where=key, expected=expected)
    network = {"backbone.name": backbone, "backbone.weights": "none", "features.layers": "last"}
    return load_recipe("probe", {**_AS_IT_IS, **changes, **network})


def _threshold(recipe: Recipe) -> float:
    if isinstance(recipe.decisions.target, str):
        raise RecipeError(
            "there are no labels to choose a threshold by",
            where="decisions.target",
            got=repr(recipe.decisions.target),
            expected="a number above 0 and below 1",
        )
    return recipe.decisions.target


def _resolved(recipe: Recipe, body: Backbone, weights: Path) -> Recipe:
    """Return the recipe with what ``auto`` meant, and with the weights as they are kept."""
    spec = {f"preprocess.{key}": value for key, value in body.spec.to_dict().items()}
    return recipe.replace({**spec, "backbone.weights": str(weights.absolute())})


def _different(attributes: Sequence[str]) -> tuple[str, ...]:
    names = (attributes,) if isinstance(attributes, str) else tuple(attributes)
    if not all(name.strip() for name in names) or not 0 < len(set(names)) == len(names):
        raise RecipeError(
            "not names of attributes",
            where="attributes",
            got=", ".join(map(repr, names)) or "none",
            expected="different ones, one for each output of the head",
        )
    return names


def _filled(
    body: Backbone, state: Mapping[str, Tensor], names: tuple[str, ...], where: str
) -> Classifier:
    """Return the classifier whose body and head are the file's."""
    own = body.network.state_dict()
    bare = _bare(state, own)
    head = {
        key: tensor
        for key, tensor in bare.items()
        if key.partition(".")[0] in _HEADS and key not in own
    }
    weight, bias = _linear(head, bare, names, where)
    rest = _bare({key: tensor for key, tensor in bare.items() if key not in head}, own)
    body.network.load_state_dict({**own, **fit_state(rest, body.network, where)})
    if weight.shape[1] != body.width:
        raise ModelError(
            f"the head does not fit the last layer of {body.name}",
            where=where,
            got=f"{weight.shape[1]} inputs",
            expected=str(body.width),
            fix="only a head on the network's own pooling can be imported",
        )
    if not all(tensor.isfinite().all() for tensor in state.values()):
        raise ModelError("this file holds weights that are no numbers", where=where, got="NaN")
    linear = Linear(HeadConfig(), body.width, len(names))
    linear.linear.load_state_dict({"weight": weight, "bias": bias})
    return Classifier(body, linear).eval()


def _linear(
    head: Mapping[str, Tensor], state: Iterable[str], names: tuple[str, ...], where: str
) -> tuple[Tensor, Tensor]:
    """Return weight (K, D) and bias (K,) of a head that is one linear layer."""
    if not head:
        tops = ", ".join(dict.fromkeys(key.partition(".")[0] for key in state))
        raise ModelError(
            "no head in this file",
            where=where,
            got=f"layers in {tops}",
            expected=f"a last linear layer called {', '.join(_HEADS)}",
            fix="polytag train with --backbone and --weights fits one to your labels",
        )
    layer = next(iter(head)).rpartition(".")[0]
    weight, bias = (head.get(f"{layer}.{kind}") for kind in ("weight", "bias"))
    lone = weight is not None and bias is not None and weight.ndim == 2 and len(head) == 2
    if weight is None or bias is None or not lone:
        raise ModelError(
            "the head cannot be imported",
            where=where,
            got=", ".join(f"{key} {tuple(tensor.shape)}" for key, tensor in head.items()),
            expected="one linear layer: a weight (K, D) and a bias (K,)",
        )
    if len(weight) != len(names) or bias.shape != weight.shape[:1]:
        raise ModelError(
            "the head does not have one output for each attribute",
            where=where,
            got=f"{layer}.weight {tuple(weight.shape)}, {layer}.bias {tuple(bias.shape)}",
            expected=f"{len(names)} outputs: {', '.join(names)}",
            fix="name by --attributes what its outputs stand for, in their order",
        )
    return weight, bias


def _bare(state: Mapping[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    """Take off a name that stands before every key and that the network itself does not use."""
    bare, tops = dict(state), {key.partition(".")[0] for key in own}
    while len(common := {key.partition(".")[0] for key in bare}) == 1 and not common & tops:
        if not all("." in key for key in bare):
            break
        bare = {key.partition(".")[2]: tensor for key, tensor in bare.items()}
    return bare
