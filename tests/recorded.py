"""Folders of the records, and differences between them that are paired by seed."""

from functools import reduce
from operator import getitem
from pathlib import Path

from scmixvi import experiments
from scmixvi.experiments._common import by_seed, interval, paired
from scmixvi.records import read

EXPERIMENTS = Path(experiments.__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs"


def differences(file, first, second, *keys, n_seeds=5):
    """Interval of first minus second over seeds, of a figure at the end of `keys`."""
    runs = read(EXPERIMENTS / file, {})["runs"]

    def figures(name):
        return {seed: reduce(getitem, keys, run) for seed, run in by_seed(runs, name).items()}

    values = paired(figures(first), figures(second))
    assert len(values) == n_seeds
    return interval(values)
