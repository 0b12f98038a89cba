"""What the experiments share: one seed, taking up where a run left off, intervals over seeds.

An experiment is a table of jobs: a name, and a function that returns figures. Its JSON holds them
under `NAME/seed=SEED`; what is there is not run again. Every job starts from the seed, so that a
resumed experiment finds what an uninterrupted one would have found. Beside its figures every run
has its environment and settings.
"""

import argparse
import math
import os
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from scmixvi._signals import status_of_ending
from scmixvi.records import check_writable, environment, locked, read, write

NOT_RUN = "not run"


def parser(doc: str, result: Path) -> argparse.ArgumentParser:
    """Arguments of every experiment: `seed`, `smoke` and `result`, the path of its JSON."""
    made = argparse.ArgumentParser(description=doc.splitlines()[0])
    made.add_argument("--seed", type=_seed, default=0)
    made.add_argument("--smoke", action="store_true", help="tiny and meaningless, for tests")
    made.add_argument("--result", type=Path, default=result, help="JSON to write or complete")
    return made


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 to 2^32 - 1")
    return int(text)


def parse(doc: str, result: Path, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """What is given for an experiment that takes no further arguments."""
    return parser(doc, result).parse_args(argv)


def prepare(seed: int) -> None:
    """Seed Python, numpy and torch; one CPU thread unless OMP_NUM_THREADS says otherwise.

    Libraries that bring an OpenMP of their own raise the number of threads again.
    """
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  scikit-learn and scanpy still read the global state
    torch.manual_seed(seed)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def recorded(result: Path, smoke: bool = False) -> dict[str, Any]:
    """The JSON of an experiment.

    Raises
    ------
    ValueError
        If it holds a smoke run where a real one is asked for, or the reverse, or is no JSON of an
        experiment.
    """
    try:
        content = read(result, {"smoke": smoke, "runs": {}})
    except (ValueError, IsADirectoryError):
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("runs"), dict):
        raise ValueError(
            f"{result} is no result of an experiment, or is damaged: pass another --result."
        )
    if content.get("smoke", False) != smoke:
        kind, other = ("smoke", "real") if smoke else ("real", "smoke")
        raise ValueError(
            f"{result} holds {other} runs and cannot take {kind} ones: pass another --result."
        )
    return content


def run_missing(
    arguments: argparse.Namespace,
    jobs: Mapping[str, Callable[[], dict[str, Any]]],
    device: torch.device | str = "cpu",
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Run the jobs that the JSON lacks for this seed, in order, and write after each.

    Parameters
    ----------
    arguments
        As from :func:`parse`.
    jobs
        Name to a function without arguments that returns what JSON can hold. It is called after
        :func:`prepare`.
    device
        Where it runs.
    settings
        What the figures depend on besides name and seed, such as the number of epochs.

    Raises
    ------
    ValueError
        If smoke runs and real ones would be mixed, or runs of other settings: those whose names
        begin alike up to the first slash (a data set) stand in one table.
    OSError
        If the JSON cannot be written, before anything is run.
    SystemExit
        With 143 where a training is told to end (SIGTERM), as shells say of one that was.
    """
    settings = dict(settings or {})
    for name, job in jobs.items():
        key = f"{name}/seed={arguments.seed}"
        if key in _comparable(arguments, name, settings)["runs"]:
            continue
        check_writable(arguments.result.parent)
        prepare(arguments.seed)
        start = time.perf_counter()
        with status_of_ending():
            figures = job()
        seconds = round(time.perf_counter() - start, 1)
        figures = _rounded(figures)
        figures |= {"seconds": seconds, "environment": environment(device), "settings": settings}
        with locked(arguments.result):
            # Read again: another process may have written meanwhile.
            content = _comparable(arguments, name, settings)
            write(arguments.result, content | {"runs": content["runs"] | {key: figures}})
        print(f"{key}: {seconds} s", flush=True)


def _rounded(value: Any) -> Any:
    """Numbers to eight digits: more than a figure has, and half of what a file would hold."""
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return float(f"{value:.8g}") if isinstance(value, float) else value


def _comparable(
    arguments: argparse.Namespace, name: str, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The JSON, once it is sure that its runs have these settings, as far as they say."""
    content, group = recorded(arguments.result, arguments.smoke), name.split("/")[0] + "/"
    for key, run in content["runs"].items():
        found = run.get("settings", {}) if key.startswith(group) else {}
        for setting, value in settings.items():
            if found.get(setting, value) != value:
                raise ValueError(
                    f"{arguments.result} holds {key} with {setting} = {found[setting]}, not "
                    f"{value}: use the same arguments, or pass another --result."
                )
    return content


def trained(
    arguments: argparse.Namespace, name: str, train: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """What `train` returns (tensors, numbers), from a file if it was trained before.

    The files stand in a folder beside the JSON, named like it: what several jobs need is trained
    once, and an interrupted experiment loses at most the training that was going on. `train` is
    called after :func:`prepare`, and so is what follows: it must not matter whether it was.
    """
    path = place_of(arguments, name)
    if not path.exists():
        prepare(arguments.seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.with_suffix(f".{os.getpid()}.part")
        torch.save(train(), whole)
        os.replace(whole, path)
    prepare(arguments.seed)
    try:
        return torch.load(path, weights_only=True)
    except Exception as error:  # what damaged bytes raise may be anything
        raise ValueError(f"{path} is damaged: delete it, to train again.") from error


def beside(result: Path, ending: str) -> Path:
    """A folder beside a JSON, named like it: `run.weights` of `run.json`, `run.v1.weights` too."""
    return result.with_name(result.name.removesuffix(".json") + ending)


def place_of(arguments: argparse.Namespace, name: str) -> Path:
    """Where :func:`trained` keeps what it has trained."""
    folder = beside(arguments.result, ".smoke" if arguments.smoke else ".weights")
    return folder / f"{name.replace('/', ',')},seed={arguments.seed}.pt"


# ---------------------------------------------------------------- over seeds


def by_seed(runs: Mapping[str, dict], name: str) -> dict[int, dict]:
    """Seed to figures of one job, ordered by seed."""
    prefix = f"{name}/seed="
    found = {int(k.removeprefix(prefix)): v for k, v in runs.items() if k.startswith(prefix)}
    return dict(sorted(found.items()))


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Mean, and half the width of Student's t interval of the mean (NaN for one value).

    Raises
    ------
    ValueError
        If there is no value.
    """
    if len(values) == 0:
        raise ValueError("an interval needs at least one value.")
    mean = float(np.mean(values))
    if len(values) == 1:
        return mean, math.nan
    quantile = stats.t.ppf((1 + level) / 2, len(values) - 1)
    return mean, float(quantile * np.std(values, ddof=1) / math.sqrt(len(values)))


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> list[float]:
    """Value minus baseline for every seed that both have."""
    return [values[seed] - baseline[seed] for seed in values if seed in baseline]


def cell(values: Sequence[float], digits: int = 2, scale: float = 1.0, sign: bool = False) -> str:
    """A cell of a table: mean ± half width of the 95 % interval over seeds.

    Parameters
    ----------
    values
        One a seed; none gives "not run", one gives the value without an interval.
    digits
        Decimals.
    scale
        Multiplies the values, for example 100 for per cent.
    sign
        Whether a positive mean gets its plus, for differences.
    """
    if len(values) == 0:
        return NOT_RUN
    mean, half = interval([scale * v for v in values])
    text = f"{mean:{'+' if sign else ''}.{digits}f}"
    return text if math.isnan(half) else f"{text} ± {half:.{digits}f}"


def markdown(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table in Markdown."""
    header = list(header)
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"
