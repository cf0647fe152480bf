"""Our path against the plain path (benchmarks/plain.py), turn by turn on one machine.

    make bench                                       # drawn pictures, everything
    python benchmarks/speed --quick                  # under 3 minutes
    python benchmarks/speed --row predict-one --data ../shared/data

prints ratios as the median of several pairs with their least and greatest, and appends them to
benchmarks/results/speed.csv with commit, machine and versions. ``--data`` is a folder with labels.*
and images/, or one that holds ``dresses`` and ``clothing-attributes`` as such folders.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path

from bench import FULL, QUICK, Bench
from results import HEAD, Result, keep
from rows import ROWS
from timing import ROOT, stamp


def measure(name: str, bench: Bench) -> list[Result]:
    """Measure a row; what goes wrong in it is said in its place."""
    print(f"{name} ...", file=sys.stderr, flush=True)
    begin = time.perf_counter()
    try:
        results = ROWS[name](bench)
    except RuntimeError as error:
        results = [Result(name, "", holds=False, note=str(error))]
    print(f"{name}: {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
    return results


def main() -> int:
    """Measure what was asked for; return 1 where a bound is not kept."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="less of everything, multiplied")
    parser.add_argument("--row", choices=ROWS, action="append", help="only this one")
    parser.add_argument("--pairs", type=int, help="[default: 3, with --quick 1]")
    parser.add_argument("--data", type=Path, help="[default: drawn pictures]")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE, ours, finetune")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench", help="scratch")
    options = parser.parse_args()
    scale = QUICK if options.quick else FULL
    scale = dataclasses.replace(scale, pairs=options.pairs or scale.pairs)
    given = options.data.resolve() if options.data else None
    options.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.work.resolve(), given, scale, tuple(options.set))
    about = stamp()
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(HEAD)
    failed = False
    for name in options.row or ROWS:
        results = measure(name, bench)
        keep(results, about, options.quick)
        for result in results:
            print(result.lines(), flush=True)
            failed |= result.verdict in ("FAIL", "error")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
