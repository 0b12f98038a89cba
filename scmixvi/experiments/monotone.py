"""Is the NLL a non-increasing function of S (section 4.2.2 of the paper)? Tested, not assumed.

The paper's scVI architecture and training (see :mod:`scmixvi.experiments.cortex`) on further data
sets, S = 1 to 5. As on CORTEX 80 % of the cells are trained on and 7 % decide when to stop, an
epoch is five steps, and held-out bounds are those of 1000 draws a cell, whatever S. CORTEX itself
is in the JSON of that experiment; the verdict over all of them is computed by the report.

Data sets: sc_mixology (its 1200 genes of highest variance, five batches) and pbmc68k.

    python -m scmixvi.experiments.monotone --seed 0
"""

import math
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import anndata as ad

from scmixvi import MixtureSCVI, datasets
from scmixvi.experiments._cells import training as singlecell
from scmixvi.experiments._cells.training import Split, Training
from scmixvi.experiments._common import parse, run_missing, trained

RESULT = Path(__file__).parent / "results" / "monotone.json"
TRAIN_SHARE, VALIDATION_SHARE, STEPS_AN_EPOCH = 0.8, 0.07, 5


@dataclass(frozen=True)
class Protocol:
    """Sizes of the experiment."""

    components: tuple[int, ...] = (1, 2, 3, 4, 5)
    n_cells: int | None = None
    n_draws: int = 1000
    training: Training = Training()


PAPER = Protocol()
SMOKE = Protocol((1, 2), 80, 12, Training(max_epochs=2, patience=2))


def sc_mixology() -> ad.AnnData:
    """The 1200 genes of highest variance, five batches."""
    adata = singlecell.most_variable(datasets.sc_mixology(), 1200)
    MixtureSCVI.setup_anndata(adata, batch_key="batch")
    return adata


def pbmc68k(n_cells: int | None = None) -> ad.AnnData:
    """Blood cells; some of them for a smoke run."""
    adata = datasets.pbmc68k()[:n_cells].copy()
    MixtureSCVI.setup_anndata(adata)
    return adata


def data_sets(protocol: Protocol) -> dict[str, Callable[[], ad.AnnData]]:
    """Name to what loads and registers it."""
    if protocol.n_cells is not None:
        return {"pbmc68k": partial(pbmc68k, protocol.n_cells)}
    return {"pbmc68k": pbmc68k, "sc_mixology": sc_mixology}


def plan(protocol: Protocol, n_cells: int, seed: int) -> tuple[Split, Training]:
    """The split of so many cells, and how models are trained on it."""
    n_train, n_validation = (round(share * n_cells) for share in (TRAIN_SHARE, VALIDATION_SHARE))
    training = replace(protocol.training, batch_size=math.ceil(n_train / STEPS_AN_EPOCH))
    return singlecell.random_split(n_cells, n_train, n_validation, seed), training


def jobs(arguments: Namespace, protocol: Protocol, name: str, adata: ad.AnnData) -> dict:
    """Name to job for every S on one data set."""
    split, training = plan(protocol, adata.n_obs, arguments.seed)

    def job(size: int) -> dict:
        train = partial(singlecell.train_mixture, adata, split, training, size)
        weights = trained(arguments, f"{name}/S={size}", train)
        model = singlecell.papers_model(adata, size, weights["state"])
        found = singlecell.bounds(model, split.test, protocol.n_draws)
        return {"n_epochs": weights["n_epochs"], "nll": -found["log_likelihood_eq17"], **found}

    return {f"{name}/S={size}": partial(job, size) for size in protocol.components}


def main(argv: list[str] | None = None) -> None:
    """Run what is not yet in the JSON for this seed."""
    arguments = parse(__doc__, RESULT, argv)
    protocol = SMOKE if arguments.smoke else PAPER
    singlecell.quiet()
    for name, load in data_sets(protocol).items():
        run_missing(arguments, jobs(arguments, protocol, name, load()))


if __name__ == "__main__":
    main()
