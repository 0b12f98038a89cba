"""What the tables of the image experiments share: cells over S, and how models were trained."""

import math
from collections.abc import Sequence

from scmixvi.experiments._common import NOT_RUN, cell
from scmixvi.experiments._images.training import Scheme
from scmixvi.experiments._reports.tables import Runs, pick

MACHINES = ("x86_64", "aarch64", "arm64")
"""What the records of trainings on a CPU call it where they do not name its model."""


def row(runs: Runs, pattern: str, components: Sequence[int], key: str, **format: object) -> list:
    """Cells over S of the models named by a pattern with `{s}`."""
    found = [pick(runs, pattern.format(s=s), key) for s in components]
    return [cell(list(f.values()), **format) for f in found]


def note(
    runs: Runs, smoke: bool, paper: Scheme | None = None, paper_runs: int | None = None
) -> str:
    """How the models of these runs were trained, as the JSON says, and where that is less.

    Parameters
    ----------
    runs
        Of one table.
    smoke
        Whether they mean nothing.
    paper
        How long the paper trains; None is its scheme for MNIST.
    paper_runs
        How many runs the paper's figures are of; None where it does not say.
    """
    if not runs:
        return f"Nothing was trained yet: {NOT_RUN}.\n"
    seeds = sorted({int(name.rpartition("=")[2]) for name in runs})
    lines = ["A smoke run: the figures mean nothing."] if smoke else []
    lines.append(f"Seed(s): {', '.join(map(str, seeds))}.")
    trainings = _trainings(runs)
    paper = paper or Scheme()
    for scheme in {tuple(t["scheme"].items()): t["scheme"] for t in trainings}.values():
        lines.append(_scheme_note(scheme, [t for t in trainings if t["scheme"] == scheme], paper))
    if len(seeds) < 3 and not smoke and all(_shorter_on_cpu(t, paper) for t in trainings):
        lines.append(_seeds_note(runs, len(seeds), paper, paper_runs))
    samples = sorted({run["n_test_samples"] for run in runs.values() if "n_test_samples" in run})
    if samples:
        lines.append(f"L = {' and '.join(map(str, samples))} in the test.")
    return " ".join(lines) + "\n"


def _shorter_on_cpu(training: dict, paper: Scheme) -> bool:
    """Whether a training was shorter than the paper's, on a CPU.

    Records without `accelerator` name the machine where they name no GPU.
    """
    kind = training.get("accelerator") or ("cpu" if training.get("device") in MACHINES else "")
    return kind == "cpu" and training["scheme"]["epochs"] < paper.epochs


def _seeds_note(runs: Runs, n_seeds: int, paper: Scheme, paper_runs: int | None) -> str:
    """Why there are so few seeds: what one took, and how much longer the paper's may take.

    A job that went on from checkpoints counts from its last start, so that it took at least this.
    """
    hours = math.floor(10 * sum(run["seconds"] for run in runs.values()) / 3600 / n_seeds) / 10
    times = paper.epochs / max(t["scheme"]["epochs"] for t in _trainings(runs))
    least = f"the paper's {paper_runs} runs" if paper_runs else "three"
    unsaid = "" if paper_runs else " The paper does not say of how many runs its figures are."
    return (
        f"Fewer seeds than {least}: training and test took at least {hours:.1f} hours a seed on a "
        f"CPU, and the paper's scheme has up to {times:.0f} times as many epochs.{unsaid}"
    )


def _trainings(runs: Runs) -> list[dict]:
    """Every training once; several runs may rest on one."""
    once = {}
    for name, run in runs.items():
        parts = name.split("/")
        once |= {(parts[0], parts[-1], t["name"]): t for t in run["trainings"]}
    return list(once.values())


def _scheme_note(scheme: dict, trainings: list[dict], paper: Scheme) -> str:
    epochs = sorted(t["epochs"] for t in trainings)
    trained = f"{epochs[0]} to {epochs[-1]}" if epochs[0] < epochs[-1] else f"{epochs[0]}"
    text = (
        f"{len(trainings)} training(s) of {trained} epochs (at most {scheme['epochs']}, KL warm-up "
        f"{scheme['warmup_epochs']}, learning rate {scheme['learning_rate']:g})"
    )
    if scheme["epochs"] < paper.epochs:
        unfinished = sum(not t["stopped_early"] for t in trainings)
        return (
            f"**Fewer epochs than the paper's** (at most {paper.epochs}, warm-up "
            f"{paper.warmup_epochs}): {text}; {unfinished} ended before early stopping."
        )
    return text + "."
