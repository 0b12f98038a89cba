"""Everything here that needs a GPU, one stage after the other, within a number of minutes.

    python -m benchmarks.gpu --minutes 60                        # or: make gpu MINUTES=60
    python -m benchmarks.gpu --stages tests cortex

The tests marked `gpu` come first, then speed beside SCVI, then the steps of the image models, and
what time is left goes to the paper's table of images, which resumes where it was stopped. A stage
is a process of its own. One that fails or takes longer than it may is ended, and the next begins.
Every stage writes the JSON that its own command writes; results/gpu.json says which ran, on what
device, how long and with what exit status.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import RESULTS
from benchmarks.singlecell import PARTS
from scmixvi.records import environment, read, write

RESULT = RESULTS / "gpu.json"
COMPILED = Path("benchmarks") / "results" / "image_gpu_compiled.json"
LEAST_SECONDS = 20  # left, to begin another stage
ROOT = Path(__file__).parents[1]


class Stage(NamedTuple):
    """A command of Python's and the seconds that it may take."""

    arguments: tuple[str, ...]
    most_seconds: float
    takes_minutes: bool = False  # and ends by itself after the minutes that it is given


def _module(words: str, most_seconds: float, takes_minutes: bool = False) -> Stage:
    return Stage(("-m", *words.split()), most_seconds, takes_minutes)


_PARTS = f"--parts {' '.join(PARTS)}"
_LARGE = "--data synthetic --n-cells 100000 --epochs 1 --rounds 3 --max-steps 200"
_COMPILED = "benchmarks.singlecell --parts training --compile reduce-overhead"
_IMAGES = "benchmarks.image --recipes vanilla composite --sizes paper --components 1 4"
STAGES = {
    "tests": _module("pytest -m gpu tests", 600),
    "cortex": _module(f"benchmarks.singlecell {_PARTS}", 300),
    "100,000 cells": _module(f"benchmarks.singlecell {_LARGE} {_PARTS}", 600),
    "compiled cortex": _module(_COMPILED, 600),
    "compiled 100,000 cells": _module(f"{_COMPILED} {_LARGE}", 600),
    "image steps": _module(f"{_IMAGES} --modes eager", 300),
    "compiled image steps": _module(f"{_IMAGES} --modes compile cudagraphs --out {COMPILED}", 900),
    "paper": _module("scmixvi.experiments.image_nll --datasets mnist", 1e9, True),
}


def run(
    stages: dict[str, Stage], minutes: float, result: Path, device: str | None = None
) -> dict[str, str]:
    """Run stages until the minutes are over; add each to the JSON, and return what came of it."""
    deadline = time.monotonic() + 60 * minutes
    status = dict.fromkeys(stages, "not begun")
    for name, stage in stages.items():
        start = time.monotonic()
        left = deadline - start
        if left < LEAST_SECONDS:
            break
        print(f"==> {name}: {left:.0f} s left", flush=True)
        exit_status = _run(stage, min(left, stage.most_seconds))
        status[name] = {0: "ok", None: "out of time"}.get(exit_status, "failed")
        row = {
            "status": status[name],
            "exit_status": exit_status,
            "seconds": round(time.monotonic() - start, 1),
            "environment": environment(device),
        }
        write(result, read(result, {}) | {name: row})
    return status


def _run(stage: Stage, seconds: float) -> int | None:
    """The exit status; None if the stage, and whatever it started, had to be ended."""
    command = [sys.executable, *stage.arguments]
    if stage.takes_minutes:
        command += ["--minutes", f"{0.8 * seconds / 60:.2f}"]
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True) as process:
        try:
            return process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def main(args: list[str] | None = None) -> None:
    """Parse the arguments and run; exit status 1 if a stage failed."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--stages", nargs="+", choices=tuple(STAGES), default=list(STAGES))
    options = parser.parse_args(args)
    if not torch.cuda.is_available():
        sys.exit("benchmarks.gpu needs a CUDA device, and torch finds none on this machine.")
    status = run({name: STAGES[name] for name in options.stages}, options.minutes, RESULT)
    print("\n".join(f"{name:22s} {found}" for name, found in status.items()))
    sys.exit("failed" in status.values())


if __name__ == "__main__":
    main()
