"""One function for each line of the table, and what is asked of it.

A row's function returns its results: against EfficientNet-B0, which the bound is about, and against
the plain path with our own backbone, so that the ratio does not hide in the architecture.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from bench import BACKBONES, EPOCHS, Bench, Data
from results import Result
from timing import Ran, run, turns

ENGINES = ("onnxruntime", "openvino")


def train_cold(bench: Bench, device: str = "cpu") -> list[Result]:
    """`train --recipe probe` with an empty cache against the plain path's 20 epochs."""
    data = bench.data("dresses")

    def ours(pair: int) -> float:
        cache, runs = bench.fresh("cold-cache"), bench.fresh("cold-runs")
        return bench.polytag(*words(runs), cache=cache).seconds

    def words(runs: Path) -> list[object]:
        told = ["train", data.labels, "--images", data.images, "--runs", runs]
        return [*told, "--device", device]

    sides = {
        name: partial(_plain_training, bench, data, backbone, device)
        for name, backbone in _backbones(bench).items()
    }
    found = turns(bench.scale.pairs, {"ours": ours, **sides})
    results = []
    spent = _profiled(bench, words(bench.fresh("cold-runs")), bench.fresh("cold-cache"))
    for name in sides:
        seconds = [each for each, _ in found[name]]
        about = _about_plain(bench, [ran for _, ran in found[name]]) + "; " + spent
        needs = (">= 30", ">= 60") if name == "B0" and device == "cpu" else ("", "")
        result = _ratio("train-cold", f"plain, {name}", found["ours"], seconds, *needs)
        results.append(replace(result, note=about, data=data.name))
    return results


def train_warm(bench: Bench) -> list[Result]:
    """The same with everything in the cache: seconds of the whole process, without torch."""
    data = bench.data("dresses")
    words = ("polytag", "train", data.labels, "--images", data.images, "--runs")
    runs = bench.fresh("warm-runs")
    bench.trained(data)  # fills the cache; the next one says what a warm start loads
    told = run(["-X", "importtime", "-m", *words, runs], bench.cache).err
    heavy = [name for name in ("torch", "timm") if re.search(rf"\|\s+{name}$", told, re.M)]
    seconds = [run(["-m", *words, runs], bench.cache).seconds for _ in range(bench.scale.pairs)]
    note = f"it loads {' and '.join(heavy)}" if heavy else "neither torch nor timm is loaded"
    note += "; " + _profiled(bench, (*words[1:], runs), bench.cache)
    return [
        Result(
            *("train-warm", "", seconds, "s", "<= 6", "<= 3"),
            holds=not heavy,
            note=note,
            data=data.name,
        )
    ]


def extract(bench: Bench, device: str = "cpu") -> list[Result]:
    """Features from files against the plain path's forward pass, and the pipeline's bound."""
    data = bench.data("dresses")
    bench.trained(data)  # exports the graph
    folder = bench.pictures(data, bench.scale.extract)
    engines = [name for name in ENGINES if not bench.lacks(name) or name == "onnxruntime"]
    ways = [(engine, views) for engine in engines for views in (1, 2)]
    quick = bench.scale.quick
    if quick:
        ways = [way for way in ways if way[1] == 1]
    if device != "cpu":
        ways = [("torch", 1), ("torch", 2)]

    def ours(engine: str, views: int, _: int) -> Any:
        return bench.inside("extract", folder, engine, views, device)

    def plain(backbone: str, _: int) -> float:
        words = (folder, "--most", bench.scale.forward, "--backbone", backbone)
        return bench.plain("forward", *words, "--device", device).json["rate"]

    sides: dict[Any, Callable[[int], Any]] = {way: partial(ours, *way) for way in ways}
    sides |= {name: partial(plain, backbone) for name, backbone in _backbones(bench).items()}
    found = turns(bench.scale.pairs, sides)
    results = []
    for engine, views in ways:
        rates = [one["rate"] for one in found[engine, views]]
        for name in _backbones(bench):
            bounds = {"onnxruntime": (">= 5", ">= 6"), "openvino": (">= 8", ">= 10")}
            # A quick run's few pictures would pay for the loading of the engine.
            asked = name == "B0" and (views, quick) == (1, False) and engine in bounds
            against = f"plain forward pass, {name}; ours with {views} a picture"
            result = _ratio(f"extract-{engine}", against, rates, found[name])
            need, aim = bounds[engine] if asked else ("", "")
            values = [1 / value for value in result.values]  # of rates, not of seconds
            note = _parts_of_a_picture(found[engine, views])
            results.append(replace(result, values=values, need=need, aim=aim, of="/s", note=note))
        results.append(_share(f"extraction, {engine}, views: {views}", found[engine, views]))
    missing = "" if device != "cpu" or "openvino" in engines else bench.lacks("openvino")
    if missing:
        results.append(Result("extract-openvino", "", note=f"not measured: {missing}"))
    return [replace(result, data=data.name) for result in results]


def predict_many(bench: Bench) -> list[Result]:
    """`predict` on 1,000 files against the plain path image by image, whole processes."""
    data, scale = bench.data("dresses"), bench.scale
    model, folder = bench.trained(data), bench.pictures(bench.data("dresses"), scale.predict)
    out = bench.folder / "answers.csv"

    def ours(path: Path, words: tuple[object, ...], _: int) -> float:
        return bench.polytag("predict", path, folder, "--out", out, *words).seconds

    def plain(backbone: str, _: int) -> float:
        words = (bench.plain_model(data, backbone), folder, "--most", scale.plain_predict)
        ran = bench.plain("predict", *words, "--backbone", backbone)
        return ran.seconds + ran.json["loop"] * (scale.predict / scale.plain_predict - 1)

    sides = {name: partial(plain, backbone) for name, backbone in _backbones(bench).items()}
    mine: dict[str, Callable[[int], float]] = {}
    results = []
    for engine in ENGINES:
        lacks = bench.lacks(engine)
        if not lacks:
            mine[engine] = partial(ours, model, ("--engine", engine))
        elif engine == "onnxruntime":
            mine[engine] = partial(ours, model, ())
        else:
            results.append(Result("predict-1000", engine, note=f"not measured: {lacks}"))
    try:
        mine["int8"] = partial(ours, bench.int8(model), ())
    except RuntimeError as error:
        results.append(Result("predict-1000", "int8", note=f"not measured: {error}"))
    for backbone in sides:
        bench.plain_model(data, BACKBONES[backbone])  # made before the clock starts
    found = turns(scale.pairs, {**mine, **sides})
    needs = {"onnxruntime": (">= 4", ""), "openvino": (">= 5.5", ""), "int8": ("", ">= 8")}
    for engine in mine:
        for name in sides:
            asked = needs[engine] if name == "B0" else ("", "")
            against = f"plain, image by image, {name}; ours with {engine}"
            results.append(_ratio("predict-1000", against, found[engine], found[name], *asked))
    note = f"{scale.predict} files"
    if scale.plain_predict < scale.predict:
        note += f"; the plain path's loop over {scale.plain_predict} of them multiplied"
    return [replace(r, note=r.note or note, data=data.name) for r in results]


def predict_one(bench: Bench) -> list[Result]:
    """`predict` on one picture, whole process: time against the plain script, and memory."""
    data = bench.data("dresses")
    model, picture = bench.trained(data), next(bench.pictures(data, 1).iterdir())
    sides: dict[str, Callable[[int], Ran]] = {
        "ours": lambda _: bench.polytag("predict", model, picture)
    }
    for name, backbone in _backbones(bench).items():
        words = (bench.plain_model(data, backbone), picture, "--backbone", backbone)
        sides[name] = lambda _, words=words: bench.plain("predict", *words)
    bench.polytag("predict", model, picture)  # files are in the system's memory from now on
    found = turns(bench.scale.pairs + 2 if bench.scale.pairs > 1 else 1, sides)
    mine = [ran.seconds for ran in found["ours"]]
    results = [
        _ratio(
            *("predict-one", f"plain, {name}", mine, [ran.seconds for ran in found[name]]),
            *((">= 10", "") if name == "B0" else ("", "")),
        )
        for name in list(sides)[1:]
    ]
    mib = [ran.mib for ran in found["ours"]]
    other = [ran.mib for ran in found["B0"]]
    results.append(Result("predict-one", "", mine, "s", aim="<= 0.35"))
    against = "plain, B0: most memory"
    results.append(
        Result("predict-one", against, mib, "MiB", "<= 150", ours=mib, other=other, of="MiB")
    )
    return [replace(result, data=data.name) for result in results]


def finetune_to_ap(bench: Bench, device: str = "cpu") -> list[Result]:
    """Our fine-tuning to the best macro AP of the plain loop on the same network and split.

    Ours is a whole process with an empty cache. The plain loop's clock stops at the end of the
    epoch in which its held-out AP was the best.
    """
    if bench.scale.quick:
        note = "not measured in a quick run: on few pictures, starting is most of the time"
        return [Result("finetune-to-ap", "", note=note)]
    data = bench.data("clothing-attributes")
    mine, plain, reached, asked = [], [], [], []

    def words(runs: Path, seed: int) -> list[object]:
        told: list[object] = ["train", data.labels, "--images", data.images]
        told += ["--recipe", "finetune", "--device", device, "--seed", seed]
        told += ["--runs", runs, "--name", "tuned"]
        return told + [word for setting in bench.settings for word in ("--set", setting)]

    for pair in range(bench.scale.pairs):
        runs, cache = bench.fresh("tuned-runs"), bench.fresh("cold-cache")
        mine.append(bench.polytag(*words(runs, pair), cache=cache).seconds)
        metrics = json.loads((runs / "tuned" / "metrics.json").read_text(encoding="utf-8"))
        reached.append(float(metrics["macro"]["ap"]["value"]))
        split = ("--split", runs / "tuned" / "splits.csv", "--seed", pair)
        epochs = _plain_run(bench, data, "embedded", device, EPOCHS, split).json["epochs"]
        best = max(epochs, key=lambda epoch: epoch["macro_ap"])
        plain.append(best["elapsed"])
        asked.append(best["macro_ap"])
    needs = (">= 4", ">= 8") if device == "cpu" else ("", "")
    result = _ratio("finetune-to-ap", "plain loop, our backbone", mine, plain, *needs)
    pairs = [f"{a:.3f} for {b:.3f}" for a, b in zip(reached, asked, strict=True)]
    notes = [f"macro AP on the same held-out part, ours for theirs: {', '.join(pairs)}"]
    notes += [f"ours with {setting}" for setting in bench.settings]
    notes.append(_profiled(bench, words(bench.fresh("tuned-runs"), 0), bench.fresh("cold-cache")))
    holds = all(a >= b for a, b in zip(reached, asked, strict=True))
    return [replace(result, holds=holds, note="; ".join(notes), data=data.name)]


def flat(bench: Bench) -> list[Result]:
    """Memory and time an image at 20,000 inputs against 1,000: the same files repeated."""
    data, (few, many) = bench.data("dresses"), bench.scale.flat
    model, out = bench.trained(data), bench.folder / "answers.csv"
    counts = (1, few, many)
    folders = {count: bench.pictures(data, count) for count in counts}

    def ours(count: int, _: int) -> Ran:
        return bench.polytag("predict", model, folders[count], "--out", out)

    found = turns(bench.scale.pairs, {str(count): partial(ours, count) for count in counts})
    alone, small, large = (found[str(count)] for count in counts)
    memory = [big.mib / little.mib for little, big in zip(small, large, strict=True)]
    # The time of the start is taken off: it would flatter the long run.
    each = [
        [
            (ran.seconds - one.seconds) / (count - 1) * 1e3
            for one, ran in zip(alone, runs, strict=True)
        ]
        for count, runs in ((few, small), (many, large))
    ]
    times = [big / little for little, big in zip(*each, strict=True)]
    against, need = f"{few} inputs; ours with {many}", "<= 1.1"
    sizes = [[ran.mib for ran in runs] for runs in (large, small)]
    results = [
        Result("memory-20000", against, memory, need=need, ours=sizes[0], other=sizes[1], of="MiB"),
        Result("time-20000", against, times, need=need, ours=each[1], other=each[0], of="ms"),
    ]
    return [replace(result, data=data.name) for result in results]


def int8(bench: Bench) -> list[Result]:
    """INT8 against fp32 on the same engine, and the macro AP of both on rows not trained on."""
    quick = bench.scale.quick
    data = bench.data("dresses" if quick else "clothing-attributes")
    train, test = (data, data) if quick else _parted(bench, data)
    model = bench.trained(train)
    files = {"int8": bench.int8(model), "fp32": model / "model.onnx"}
    folder = bench.pictures(data, min(300, bench.scale.predict))
    found = turns(
        bench.scale.pairs,
        {name: partial(_answered, bench, path, folder) for name, path in files.items()},
    )
    scores = {}
    for name, path in files.items() if not quick else ():
        words = ("evaluate", path, test.labels, "--images", test.images, "--json")
        words += ("--max-skipped", 0.5)
        scores[name] = float(bench.polytag(*words).json["macro"]["ap"]["value"])
    lost = 0.0 if quick else scores["fp32"] - scores["int8"]
    rates = {name: [one["engine"] for one in each] for name, each in found.items()}
    values = [a / b for a, b in zip(rates["int8"], rates["fp32"], strict=True)]
    note = "engine alone; "
    if quick:
        note += "the AP is not compared"
    else:
        note += f"macro AP {scores['int8']:.4f}, in fp32 {scores['fp32']:.4f}"
    result = Result(
        *("int8", "fp32, onnxruntime", values, "x", ">= 1.6", ">= 2"),
        *(rates["int8"], rates["fp32"], "/s", abs(lost) <= 0.005, note),
    )
    shares = [_share(f"predict, onnxruntime, {name}", each) for name, each in found.items()]
    return [replace(each, data=data.name) for each in (result, *shares)]


def on_a_gpu(name: str, row: Callable[..., list[Result]], bench: Bench) -> list[Result]:
    """Measure a row on a GPU, where there is one."""
    if not bench.has_gpu():
        return [Result(f"gpu-{name}", "", note="not measured: no GPU")]
    return [replace(result, row=f"gpu-{result.row}") for result in row(bench, device="cuda")]


ROWS: dict[str, Callable[[Bench], list[Result]]] = {
    "train-cold": train_cold,
    "train-warm": train_warm,
    "extract": extract,  # and pipeline-share
    "predict-1000": predict_many,
    "predict-one": predict_one,
    "finetune-to-ap": finetune_to_ap,
    "flat": flat,  # memory-20000 and time-20000
    "int8": int8,
    "gpu-train-cold": partial(on_a_gpu, "train-cold", train_cold),
    "gpu-extract": partial(on_a_gpu, "extract", extract),
    "gpu-finetune-to-ap": partial(on_a_gpu, "finetune-to-ap", finetune_to_ap),
}


def _backbones(bench: Bench) -> dict[str, str]:
    """Return the plain path's networks; a quick run has time for one."""
    return {"B0": BACKBONES["B0"]} if bench.scale.quick else BACKBONES


def _ratio(
    row: str,
    against: str,
    ours: list[float],
    other: list[float],
    need: str = "",
    aim: str = "",
) -> Result:
    values = [b / a for a, b in zip(ours, other, strict=True)]
    return Result(row, against, values, "x", need, aim, ours, other)


def _share(what: str, found: list[dict[str, float]]) -> Result:
    """Return what share of 1 / (1/engine + 1/decode) a pipeline reaches."""
    bounds = [1 / (1 / one["engine"] + 1 / one["decode"]) for one in found]
    rates = [one["pipeline"] for one in found]
    values = [rate / bound for rate, bound in zip(rates, bounds, strict=True)]
    engine, decode = (sum(one[half] for one in found) / len(found) for half in ("engine", "decode"))
    note = f"alone: engine {engine:.0f}/s, decoding {decode:.0f}/s"
    against = f"the bound; ours is {what}"
    asked = ("", ">= 0.85", ">= 0.95")
    return Result("pipeline-share", against, values, *asked, rates, bounds, "/s", note=note)


def _parts_of_a_picture(found: list[dict[str, float]]) -> str:
    """Say what a picture's milliseconds go into."""
    engine, decode, pipeline, whole = (
        median(1e3 / one[name] for one in found)
        for name in ("engine", "decode", "pipeline", "rate")
    )
    return (
        f"ms a picture {whole:.2f}: engine {engine:.2f}, decoding {decode:.2f}, lost between them "
        f"{pipeline - engine - decode:.2f}, loading, hashing, looks, keeping {whole - pipeline:.2f}"
    )


def _profiled(bench: Bench, words: Sequence[object], cache: Path) -> str:
    """Say where the seconds of one more run of ours go, start and end of the process left out."""
    if bench.scale.quick:
        return "not profiled"
    try:
        parts = bench.inside("profile", *words, cache=cache)
    except RuntimeError as error:
        return f"not profiled: {error}"
    told = ", ".join(f"{name} {seconds:.1f}" for name, seconds in parts.items() if seconds > 0.05)
    return f"one more run of ours, profiled, {sum(parts.values()):.1f} s: {told}"


def _answered(bench: Bench, model: Path, folder: Path, _: int) -> Any:
    return bench.inside("answer", model, folder)


def _plain_run(
    bench: Bench,
    data: Data,
    backbone: str,
    device: str,
    epochs: tuple[int, int],
    more: tuple[object, ...] = (),
) -> Ran:
    words = (data.labels, data.images, "--save", bench.folder / "plain.pth", "--epochs", *epochs)
    words += ("--backbone", backbone, "--device", device, *more)
    return bench.plain("train", *words)


def _plain_training(
    bench: Bench,
    data: Data,
    backbone: str,
    device: str,
    pair: int,
) -> tuple[float, Ran]:
    """Return the seconds of the plain path's 20 epochs; only the first pair takes them all."""
    steps = ("--steps", bench.scale.steps) if bench.scale.steps else ()
    epochs = (1, 1) if steps or pair else EPOCHS
    ran = _plain_run(bench, data, backbone, device, epochs, steps)
    return ran.seconds if epochs == EPOCHS else _multiplied(ran), ran


def _multiplied(ran: Ran) -> float:
    """Return how long 20 epochs take, by the first epoch of each stage."""
    epochs = ran.json["epochs"]
    parts = [[epoch["train"], epoch["validate"]] for epoch in epochs]
    measured = sum(part["seconds"] for both in parts for part in both)
    first = {epoch["stage"]: both for epoch, both in reversed([*zip(epochs, parts, strict=True)])}
    whole = sum(
        EPOCHS[stage] * sum(part["seconds"] * part["of"] / max(1, part["seen"]) for part in both)
        for stage, both in first.items()
    )
    return ran.seconds - measured + whole


def _about_plain(bench: Bench, runs: list[Ran]) -> str:
    """Say how the plain path's time was found, and by how much its multiplication errs."""
    if bench.scale.quick:
        return f"the plain path's 20 epochs: {bench.scale.steps} steps of each stage, multiplied"
    off = _multiplied(runs[0]) / runs[0].seconds - 1
    times = f"; the first epoch of each stage, multiplied, is {off:+.1%} off"
    return f"the plain path ran whole in 1 of {len(runs)} pairs{times}"


def _parted(bench: Bench, data: Data) -> tuple[Data, Data]:
    """Return three of four rows of a table, and the fourth ones."""
    lines = data.labels.read_text(encoding="utf-8").splitlines(keepends=True)
    head, body = ([lines[0]], lines[1:]) if data.labels.suffix == ".csv" else ([], lines)
    parts = []
    for name, test in (("train", False), ("test", True)):
        path = bench.folder / f"{name}{data.labels.suffix}"
        rows = [line for index, line in enumerate(body) if (index % 4 == 0) == test]
        path.write_text("".join(head + rows), encoding="utf-8")
        parts.append(Data(f"{data.name}, {name} rows", path, data.images))
    return parts[0], parts[1]
