"""Whole processes timed, turn by turn; the machine and the versions they ran with.

Nothing heavy is imported by the process that starts the others: on Linux a child's peak memory
starts at what its parent held when it began.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
LIMIT = 3600  # seconds that a process may take: one that hangs must not hang the benchmark
_KIB = 1 if sys.platform == "darwin" else 1024  # what ru_maxrss counts in


class Ran(NamedTuple):
    """A process that has ended."""

    seconds: float
    mib: float  # most memory it held
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The object on the last line of its output."""
        return json.loads(self.out.splitlines()[-1])


def run(words: Sequence[object], cache: Path) -> Ran:
    """Run a Python process to its end.

    Args:
        words: Behind the interpreter: ``["-m", "polytag", ...]`` or a script.
        cache: Its folder for what polytag keeps.

    Raises:
        RuntimeError: It did not end well; with the end of what it said.
    """
    command = [sys.executable, *map(str, words)]
    environment = os.environ | {"POLYTAG_CACHE": str(cache)}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment, cwd=ROOT)
        watchdog = threading.Timer(LIMIT, process.kill)
        watchdog.daemon = True
        watchdog.start()
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        watchdog.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode(errors="replace"))
    if process.returncode:
        said = "\n".join((texts[1] or texts[0]).splitlines()[-5:])
        raise RuntimeError(f"{' '.join(command[1:5])} ...: exit {process.returncode}\n{said}")
    return Ran(seconds, used.ru_maxrss * _KIB / 2**20, *texts)


def turns(pairs: int, sides: Mapping[str, Callable[[int], Any]]) -> dict[str, list[Any]]:
    """Let the sides take turns, the order reversed in every other pair; return what they gave.

    A machine that slows down while it is measured slows all sides down alike.
    """
    found: dict[str, list[Any]] = {name: [] for name in sides}
    for pair in range(pairs):
        for name in reversed(sides) if pair % 2 else sides:
            found[name].append(sides[name](pair))
    return found


def stamp() -> dict[str, object]:
    """Return what a row is worth nothing without: commit, machine and versions."""
    git = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    described = subprocess.run(git, capture_output=True, text=True, check=True, cwd=ROOT)
    found: dict[str, object] = {
        "commit": described.stdout.strip(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "python": platform.python_version(),
    }
    return found | {name: version(name) for name in ("torch", "onnxruntime", "openvino", "numpy")}


def version(package: str) -> str:
    """Return a package's version, or a dash where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "-"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.is_file() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
