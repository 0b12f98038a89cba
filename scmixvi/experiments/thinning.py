"""What encoders gain from noise on what they see of a cell in training (not in the paper).

:mod:`scmixvi.experiments.decoders` finds that encoders explain held-out cells much worse than
cells that they were trained on. Here MixtureSCVI is trained with its defaults but for one argument,
and the same cells are looked at.

DATASET/ARM/S=1 and 4, for every seed (which sets the split and the initialisation):

default
    nothing changed;
thinned
    `thinning_rate=0.9`: in training the encoders see a random 10 to 100 % of a cell's counts,
    scaled up;
dropout
    `dropout_rate=0.4` in place of 0.1: scvi-tools' own noise, on the hidden layer;
both
    thinned and with this dropout;
default, refined and thinned, refined
    the same models after :meth:`scmixvi.MixtureSCVI.refine_encoders`, which leaves log p(x);
ARM, coverage
    what 90 % of a cell's q hold of its exact posterior, as in
    :mod:`scmixvi.experiments.inference_gap`.

How to thin, and how much, was chosen with S = 1 and seed 0 (of cortex with seed 1 too): the other
seeds were not looked at before. Log p(x) is that of :mod:`scmixvi.singlecell._queries.evidence`. On
cortex also the scores of the means: a linear classifier and k-means.

    python -m scmixvi.experiments.thinning --seed 0
"""

from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scvi.model._utils import get_max_epochs_heuristic
from scvi.module._constants import MODULE_KEYS
from torch import Tensor

from scmixvi import MixtureSCVI
from scmixvi.core.modes import frozen
from scmixvi.experiments import inference_gap
from scmixvi.experiments._cells import training as singlecell
from scmixvi.experiments._cells.coverage import cell_means, coverage
from scmixvi.experiments._cells.trained_models import TrainedModels
from scmixvi.experiments._families import best
from scmixvi.experiments.decoders import (
    COMPONENTS,
    by_data,
    cells,
    converged,
    looked_at,
    run_by_data,
)
from scmixvi.experiments.inference_gap import N_STEPS
from scmixvi.experiments.refinement import scores_of, trained_on
from scmixvi.singlecell._parts.cell_refinement import log_joint_of
from scmixvi.singlecell._training.refinement import REFINEMENT_SHARE

RESULT = Path(__file__).parent / "results" / "thinning.json"
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "thinned": {"thinning_rate": 0.9},
    "dropout": {"dropout_rate": 0.4},
    "both": {"thinning_rate": 0.9, "dropout_rate": 0.4},
}
ARMS = tuple(OPTIONS)
REFINED = ("default", "thinned")
N_TEST, N_TRAINING, N_DRAWS = 162, 81, 1000


def coverages(model: MixtureSCVI, indices: np.ndarray, smoke: bool) -> dict[str, float]:
    """What 90 % of the encoders' q hold of the exact posterior, means over cells."""
    module, n_draws = model.module, 40 if smoke else inference_gap.N_DRAWS

    def figures(tensors: dict, encoded: dict) -> dict[str, Tensor]:
        log_joint, qz = log_joint_of(module, tensors, encoded), encoded[MODULE_KEYS.QZ_KEY]
        start = qz.c_loc.transpose(0, 1), qz.c_scale.transpose(0, 1)
        with frozen(module.parameters()):
            fit = best("full covariance", *start, log_joint, 2 if smoke else N_STEPS)
        with torch.no_grad():
            own = {"encoders": qz.posterior}
            return coverage(module, tensors, encoded, own, fit, log_joint, n_draws)

    return cell_means(model, indices, figures)


def jobs(arguments: Namespace, name: str) -> dict[str, Callable[[], dict]]:
    """Name to job for every arm on one data set."""
    smoke, seed = arguments.smoke, arguments.seed
    adata, split, training = cells(name, seed, smoke)
    sizes = {"n_rounds": 2, "n_draws": 50, "n_final": 100} if smoke else {}
    groups = looked_at(split, seed, N_TEST, N_TRAINING)
    models = TrainedModels(arguments, adata, split, training, f"{name}/")

    n_refined = 2 if smoke else round(REFINEMENT_SHARE * get_max_epochs_heuristic(adata.n_obs))

    def model_of(arm: str, size: int) -> tuple[MixtureSCVI, int]:
        return models.by_default(f"{arm}/S={size}", None, n_components=size, **OPTIONS[arm])

    def figures(model: MixtureSCVI) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for group, indices in groups.items():
            bounds = singlecell.bounds(model, indices, 12 if smoke else N_DRAWS)
            found[group] = {
                "miselbo": bounds["miselbo"],
                "own_draws": bounds["log_likelihood"],
                "jsd": bounds["jsd"],
                "n_cells": len(indices),
            }
        if name == "cortex":
            means = model.get_latent_representation()
            found["scores"] = scores_of(means, split, seed, smoke)
        return found

    def job(arm: str, size: int) -> dict:
        model, n_epochs = model_of(arm, size)
        found = {"n_epochs": n_epochs} | figures(model)
        for group, indices in groups.items():
            log_p = converged(model, indices, **sizes)
            found[group] |= {
                "log_p": log_p["log_p"],
                "effective_share": log_p["effective_share"],
                "gap": log_p["log_p"] - found[group]["miselbo"],
            }
        return found

    def refined_job(arm: str, size: int) -> dict:
        model, _ = model_of(arm, size)
        data = singlecell.loader(model, split, 128)
        return {"n_epochs": n_refined} | figures(trained_on(model, "refined", n_refined, data))

    def coverage_job(arm: str, size: int) -> dict:
        model, _ = model_of(arm, size)
        some = looked_at(split, seed, inference_gap.N_TEST, inference_gap.N_TRAINING)
        return {
            group: coverages(model, indices, smoke) | {"n_cells": len(indices)}
            for group, indices in some.items()
        }

    found: dict[str, Callable[[], dict]] = {}
    for what, arms, job_of in (
        ("", ARMS, job),
        (", coverage", ARMS, coverage_job),
        (", refined", REFINED, refined_job),
    ):
        for arm, size in product((a for a in arms if a in arguments.models), COMPONENTS):
            found[f"{name}/{arm}{what}/S={size}"] = partial(job_of, arm, size)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Train and compare what is not yet in the JSON for this seed."""
    run_by_data(by_data(__doc__, RESULT, ARMS).parse_args(argv), jobs)


if __name__ == "__main__":
    main()
