"""Folders of the records, figures in them by seed, and differences that are paired by seed."""

from functools import reduce
from operator import getitem
from pathlib import Path

from scmixvi import experiments
from scmixvi.experiments._common import by_seed, interval, paired
from scmixvi.records import read

EXPERIMENTS = Path(experiments.__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs"


def by_job(file, job, *keys, n_seeds=5):
    """Seed to the figure at the end of `keys`."""
    runs = read(EXPERIMENTS / file, {})["runs"]
    found = {seed: reduce(getitem, keys, run) for seed, run in by_seed(runs, job).items()}
    assert len(found) == n_seeds
    return found


def beyond(values):
    """Whether the 95 % interval of the mean excludes 0."""
    mean, half = interval(values)
    return abs(mean) > half


def differences(file, first, second, *keys, n_seeds=5):
    """Interval of first minus second over seeds, of a figure at the end of `keys`."""
    runs = read(EXPERIMENTS / file, {})["runs"]

    def figures(name):
        return {seed: reduce(getitem, keys, run) for seed, run in by_seed(runs, name).items()}

    values = paired(figures(first), figures(second))
    assert len(values) == n_seeds
    return interval(values)
