"""Decoder or posterior: where a mixture's gain comes from (not in the paper).

An importance-sampled log-likelihood depends on the decoder, which is the model, and on the encoder,
which is only its proposal. :mod:`scmixvi.experiments.cortex` and
:mod:`scmixvi.experiments.monotone` estimate it from 1000 draws of each model's own encoders, and so
cannot tell a better decoder from a better proposal. Here every test cell gets a proposal of its own
(:mod:`scmixvi.singlecell._queries.evidence`), by which log p(x), averaged over cells, is known
whatever the encoder to some hundredths of a nat: on cortex the estimates of S = 1 and of the
ensemble, which has its decoder, are no further apart in any run. The same is done for some of the
training cells, since an encoder may fit those and not others. What is left to compare are decoders
(log p(x)) and posteriors (the gap from log p(x) down to MISELBO, the whole variational gap).

Rows, for every data set and seed (which sets the split and the initialisation):

mixture/S=1, 4
    trained as in :mod:`scmixvi.experiments.cortex`;
ensemble/S=4
    cortex: the encoder of S = 1 and three more, against that model's decoder;
mixture/S=1, 4/Eq. 17
    the same models' test cells by Eq. 17 of the paper with its L, 1000 draws of each component
    whatever S (elsewhere here 1000 in all);
default/S=1, 4
    cortex and sc_mixology: MixtureSCVI with its own defaults (batch norm, KL warm-up, batches of
    128, scvi-tools' number of epochs);
longer, batch norm both, none
    cortex and sc_mixology, S = 1: the defaults for 1000 epochs, the most that the paper's scheme
    takes, with batch norm as by default and without.

    python -m scmixvi.experiments.decoders --seed 0
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import anndata as ad
import numpy as np
import torch

from scmixvi import MixtureSCVI
from scmixvi._messages import listing
from scmixvi.experiments import _common, cortex, monotone
from scmixvi.experiments._cells import training as singlecell
from scmixvi.experiments._cells.trained_models import TrainedModels
from scmixvi.experiments._cells.training import Split, Training
from scmixvi.experiments._common import run_missing
from scmixvi.singlecell._queries.evidence import Evidence, cell_evidence

RESULT = Path(__file__).parent / "results" / "decoders.json"
COMPONENTS = (1, 4)
DATASETS = ("cortex", *monotone.data_sets(monotone.PAPER))
N_TEST, N_TRAINING, BATCH = 203, 81, 27
MODELS = ("mixture", "ensemble", "default", "longer")
WITH_DEFAULTS = ("cortex", "sc_mixology")
LONGER, BATCH_NORMS = 1000, ("both", "none")


def cells(name: str, seed: int, smoke: bool) -> tuple[ad.AnnData, Split, Training]:
    """A registered data set, its split, and how the paper's models are trained on it."""
    if name != "cortex":
        shorter = monotone.SMOKE if smoke else monotone.PAPER
        adata = monotone.data_sets(shorter)[name]()
        return adata, *monotone.plan(shorter, adata.n_obs, seed)
    protocol = cortex.SMOKE if smoke else cortex.PAPER
    adata, _ = cortex.load(smoke)
    MixtureSCVI.setup_anndata(adata)
    split = singlecell.random_split(adata.n_obs, protocol.n_train, protocol.n_validation, seed)
    return adata, split, protocol.training


def converged(model: MixtureSCVI, indices: np.ndarray, **sizes: int) -> dict[str, float]:
    """Log p(x) of cells by proposals of their own, averaged over cells; nats a cell.

    Parameters
    ----------
    model
        Any latent dimension.
    indices
        Cells.
    **sizes
        Passed on to :func:`scmixvi.singlecell._queries.evidence.evidence`.
    """
    batches = model._make_data_loader(adata=model.adata, indices=indices, batch_size=BATCH)
    with torch.inference_mode():
        found = [cell_evidence(model.module, tensors, **sizes) for tensors in batches]
    whole = Evidence(*(torch.cat(parts) for parts in zip(*found, strict=True)))
    return {
        "log_p": whole.log_likelihood.mean().item(),
        "effective_share": whole.effective.mean().item(),
        "smallest_effective_share": whole.effective.min().item(),
        "still_rising": whole.still_rising.mean().item(),
    }


def looked_at(
    split: Split, seed: int, n_test: int = N_TEST, n_training: int = N_TRAINING
) -> dict[str, np.ndarray]:
    """Indices of some test cells and of some that the model was trained on."""
    rng = np.random.default_rng(seed)
    return {
        "test": np.sort(rng.permutation(split.test)[:n_test]),
        "training": np.sort(rng.permutation(split.train)[:n_training]),
    }


def jobs(arguments: Namespace, name: str) -> dict[str, Callable[[], dict]]:
    """Name to job for every model on one data set."""
    smoke, seed = arguments.smoke, arguments.seed
    adata, split, training = cells(name, seed, smoke)
    sizes = {"n_rounds": 2, "n_draws": 50, "n_final": 100} if smoke else {}

    groups = looked_at(split, seed)
    n_draws = 12 if smoke else 1000

    def figures(model: MixtureSCVI, n_epochs: int) -> dict:
        found = {}
        for group, indices in groups.items():
            bounds = singlecell.bounds(model, indices, n_draws)
            log_p = converged(model, indices, **sizes)
            found[group] = {
                **log_p,
                "gap": log_p["log_p"] - bounds["miselbo"],
                "own_draws": bounds["log_likelihood"],
                "miselbo": bounds["miselbo"],
                "jsd": bounds["jsd"],
                "n_cells": len(indices),
            }
        return {"n_epochs": n_epochs, **found}

    models = TrainedModels(arguments, adata, split, training, f"{name}/")

    def mixture_job(size: int) -> dict:
        return figures(*models.mixture(size))

    def eq17_job(size: int) -> dict:
        model, _ = models.mixture(size)
        bounds = singlecell.bounds(model, groups["test"], size * n_draws)
        return {"draws_a_component": n_draws, "eq17": bounds["log_likelihood_eq17"]}

    def ensemble_job() -> dict:
        return figures(*models.ensemble(COMPONENTS[-1]))

    def default_job(size: int) -> dict:
        return figures(*models.default(size))

    def longer_job(batch_norm: str) -> dict:
        return figures(*models.longer(LONGER, batch_norm))

    found: dict[str, Callable[[], dict]] = {}
    if "mixture" in arguments.models:
        found |= {f"{name}/mixture/S={s}": partial(mixture_job, s) for s in COMPONENTS}
        found |= {f"{name}/mixture/S={s}/Eq. 17": partial(eq17_job, s) for s in COMPONENTS}
    if "ensemble" in arguments.models and name == "cortex":
        found[f"{name}/ensemble/S={COMPONENTS[-1]}"] = ensemble_job
    if "default" in arguments.models and name in WITH_DEFAULTS:
        found |= {f"{name}/default/S={s}": partial(default_job, s) for s in COMPONENTS}
    if "longer" in arguments.models and name in WITH_DEFAULTS:
        found |= {f"{name}/longer, batch norm {b}": partial(longer_job, b) for b in BATCH_NORMS}
    return found


def by_data(doc: str, result: Path, models: Sequence[str] = MODELS) -> ArgumentParser:
    """Arguments of an experiment on all data sets and models, or on some of them."""
    made = _common.parser(doc, result)
    made.add_argument("--data", nargs="+", choices=DATASETS, help="some data sets only")
    made.add_argument("--models", nargs="+", choices=models, default=models, help="some only")
    return made


def run_by_data(
    arguments: Namespace, jobs: Callable[[Namespace, str], dict[str, Callable[[], dict]]]
) -> None:
    """Run the missing jobs of every data set; a smoke run has the first alone.

    Raises
    ------
    ValueError
        If a smoke run is asked for others.
    """
    known = ("cortex", *monotone.data_sets(monotone.SMOKE)) if arguments.smoke else DATASETS
    if not set(arguments.data or known) <= set(known):
        raise ValueError(f"a smoke run is of {listing(known)}: pass --data of these.")
    singlecell.quiet()
    for name in arguments.data or (known[:1] if arguments.smoke else known):
        run_missing(arguments, jobs(arguments, name))


def main(argv: Sequence[str] | None = None) -> None:
    """Train and compare what is not yet in the JSON for this seed."""
    run_by_data(by_data(__doc__, RESULT).parse_args(argv), jobs)


if __name__ == "__main__":
    main()
