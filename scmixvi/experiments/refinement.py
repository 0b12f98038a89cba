"""What encoders gain when they learn from resampled cells, the decoder as it is (not in the paper).

:mod:`scmixvi.experiments.decoders` finds that encoders explain held-out cells much worse than
cells that they were trained on. Here the same models go through
:meth:`scmixvi.MixtureSCVI.refine_encoders`, with its defaults, and the same cells are looked at
before and after. The decoder does not change, and with it log p(x): what MISELBO gains, the gap
loses.

Rows, for every data set and seed (which sets the split and the initialisation), S = 1 and 4:

before
    the mixture of :mod:`scmixvi.experiments.decoders`;
longer
    its encoders alone, trained on for as many epochs on the cells as they are, without dropout:
    the control, which resamples nothing;
refined
    its encoders alone, on resampled cells.

On cortex and sc_mixology the same with MixtureSCVI's defaults, whose batch norm keeps the
statistics of the training. On cortex also the scores of the test cells' mixture means: a linear
classifier and k-means.

    python -m scmixvi.experiments.refinement --seed 0
"""

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from scvi.model._utils import get_max_epochs_heuristic

from scmixvi import MixtureSCVI
from scmixvi.experiments import cortex
from scmixvi.experiments._cells import training as singlecell
from scmixvi.experiments._cells.trained_models import TrainedModels
from scmixvi.experiments._cells.training import Split
from scmixvi.experiments.decoders import (
    COMPONENTS,
    WITH_DEFAULTS,
    by_data,
    cells,
    looked_at,
    run_by_data,
)
from scmixvi.singlecell._training.refinement import REFINEMENT_SHARE, encoders_alone

# From a number of components to a trained model and its number of epochs.
ModelOf = Callable[[int], tuple[MixtureSCVI, int]]

RESULT = Path(__file__).parent / "results" / "refinement.json"
N_REPEATS = 50
STAGES = ("before", "longer", "refined")
MODELS = ("mixture", "default")


def trained_on(model: MixtureSCVI, stage: str, n_epochs: int, data: object) -> MixtureSCVI:
    """The model at one of the `STAGES`."""
    arguments = {"datamodule": data, "latent_key": None, "enable_progress_bar": False}
    if stage == "longer":
        with encoders_alone(model.module):
            model.train(n_epochs, **arguments)
    if stage == "refined":
        model.refine_encoders(n_epochs, **arguments)
    return model


def scores_of(means: np.ndarray, split: Split, seed: int, smoke: bool) -> dict[str, float]:
    """A linear classifier and k-means on the means of cortex's cells, scored on the test cells."""
    protocol = cortex.SMOKE if smoke else replace(cortex.PAPER, n_repeats=N_REPEATS)
    _, labels = cortex.load(smoke)
    scorer = cortex.Scorer(labels, split, protocol, seed)
    return scorer.fixed(means[split.train], means[split.test])


def jobs(arguments: Namespace, name: str) -> dict[str, Callable[[], dict]]:
    """Name to job for every model on one data set."""
    smoke, seed = arguments.smoke, arguments.seed
    adata, split, training = cells(name, seed, smoke)
    n_epochs = 2 if smoke else round(REFINEMENT_SHARE * get_max_epochs_heuristic(adata.n_obs))
    groups = looked_at(split, seed)
    models = TrainedModels(arguments, adata, split, training, f"{name}/")

    def job(model_of: ModelOf, size: int, stage: str) -> dict:
        model, _ = model_of(size)
        model = trained_on(model, stage, n_epochs, singlecell.loader(model, split, 128))
        found: dict = {"n_epochs": 0 if stage == "before" else n_epochs}
        for group, indices in groups.items():
            bounds = singlecell.bounds(model, indices, 12 if smoke else 1000)
            found[group] = {
                "miselbo": bounds["miselbo"],
                "own_draws": bounds["log_likelihood"],
                "jsd": bounds["jsd"],
                "n_cells": len(indices),
            }
        return found | (
            {"scores": scores_of(model.get_latent_representation(), split, seed, smoke)}
            if name == "cortex"
            else {}
        )

    makers: dict[str, ModelOf] = {}
    if "mixture" in arguments.models:
        makers[name] = models.mixture
    if "default" in arguments.models and name in WITH_DEFAULTS:
        makers[f"{name}/default"] = models.default
    return {
        f"{start}/{stage}/S={size}": partial(job, model_of, size, stage)
        for start, model_of in makers.items()
        for size in COMPONENTS
        for stage in STAGES
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Refine and compare what is not yet in the JSON for this seed."""
    run_by_data(by_data(__doc__, RESULT, MODELS).parse_args(argv), jobs)


if __name__ == "__main__":
    main()
