"""What mixtures could win and what encoders lose: the gap of each cell, split (not in the paper).

The variational gap log p(x) - MISELBO has two parts (Cremer et al. 2018). The *family's* is what
the best posterior that the family has for that cell leaves: here more components can help. The
*amortisation's* is how far the encoders, which answer for all cells at once, stay behind that best.
With models as :mod:`scmixvi.experiments.decoders` trains them, every cell gets posteriors of its
own by gradient ascent on its MISELBO (:func:`scmixvi.core.fit_posterior`), of three families: one
Gaussian with diagonal covariance, one with full covariance, and a mixture of four diagonal ones.
Log p(x) is that of :mod:`scmixvi.singlecell._queries.evidence`.

Beside them stand the model's own family after 25, 50 and 100 steps, as
`get_latent_representation(n_refinement_steps=...)` takes them, and how honest its uncertainty is:
the share of the exact posterior inside the region, or the interval of a gene's expression, that
holds 90 % of q. The exact posterior is weighted draws of a Student distribution with the location
and scale of the fitted Gaussian with full covariance.

On cortex also the scores of the means of all cells, before and after 50 and 100 steps.

    python -m scmixvi.experiments.inference_gap --seed 0
"""

from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scvi.module._constants import MODULE_KEYS
from torch import Tensor

from scmixvi import MixtureSCVI
from scmixvi.core.modes import frozen
from scmixvi.experiments._cells.coverage import cell_means, coverage
from scmixvi.experiments._cells.trained_models import TrainedModels
from scmixvi.experiments._families import FAMILIES, best, bound_of
from scmixvi.experiments.decoders import (
    COMPONENTS,
    WITH_DEFAULTS,
    by_data,
    cells,
    looked_at,
    run_by_data,
)
from scmixvi.experiments.refinement import scores_of
from scmixvi.singlecell._parts.cell_refinement import log_joint_of, refined
from scmixvi.singlecell._queries.evidence import START_STEPS, cell_evidence

RESULT = Path(__file__).parent / "results" / "inference_gap.json"
MODELS = ("mixture", "default")
STEPS = (25, 50, 100)
STAGES = {"encoders": 0} | {f"{n} steps": n for n in STEPS[1:]}  # of which more than the gap
N_TEST, N_TRAINING = 101, 81
N_STEPS, N_DRAWS = 400, 400


def figures(model: MixtureSCVI, indices: np.ndarray, smoke: bool) -> dict[str, Any]:
    """Gaps by family, and what 90 % of q cover, means over cells."""
    module, n_draws = model.module, 40 if smoke else N_DRAWS
    sizes = {"n_rounds": 2, "n_draws": 50, "n_final": 100} if smoke else {}

    def found(tensors: dict, encoded: dict) -> dict[str, Tensor]:
        with torch.no_grad():
            evidence = cell_evidence(module, tensors, 2 if smoke else START_STEPS, **sizes)
        log_joint, qz = log_joint_of(module, tensors, encoded), encoded[MODULE_KEYS.QZ_KEY]
        own = {"encoders": qz.posterior}
        for n_steps in STEPS:
            own[f"{n_steps} steps"] = refined(module, tensors, 2 if smoke else n_steps).posterior
        loc, scale = qz.c_loc.transpose(0, 1), qz.c_scale.transpose(0, 1)
        with frozen(module.parameters()):
            fits = {f: best(f, loc, scale, log_joint, 2 if smoke else N_STEPS) for f in FAMILIES}
        with torch.no_grad():
            log_p = evidence.log_likelihood
            row = {"log_p": log_p, "effective_share": evidence.effective}
            for name, posterior in (own | fits).items():
                row[f"gap/{name}"] = log_p - bound_of(posterior, log_joint, n_draws)
            compared = {name: own[name] for name in STAGES}
            fit = fits["full covariance"]
            return row | coverage(module, tensors, encoded, compared, fit, log_joint, n_draws)

    return cell_means(model, indices, found)


def jobs(arguments: Namespace, name: str) -> dict[str, Callable[[], dict]]:
    """Name to job for every model on one data set."""
    smoke, seed = arguments.smoke, arguments.seed
    adata, split, training = cells(name, seed, smoke)
    groups = looked_at(split, seed, N_TEST, N_TRAINING)
    models = TrainedModels(arguments, adata, split, training, f"{name}/")

    def job(model_of: Callable[[int], tuple[MixtureSCVI, int]], size: int) -> dict:
        model, n_epochs = model_of(size)
        found: dict[str, Any] = {"n_epochs": n_epochs}
        for group, indices in groups.items():
            found[group] = figures(model, indices, smoke) | {"n_cells": len(indices)}
        if name == "cortex":
            for stage, n_steps in STAGES.items():
                means = model.get_latent_representation(n_refinement_steps=n_steps)
                found[f"scores/{stage}"] = scores_of(means, split, seed, smoke)
        return found

    kinds = {"mixture": models.mixture}
    if name in WITH_DEFAULTS:
        kinds["default"] = models.default
    return {
        f"{name}/{kind}/S={size}": partial(job, kinds[kind], size)
        for kind in kinds
        if kind in arguments.models
        for size in COMPONENTS
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Fit and compare what is not yet in the JSON for this seed."""
    run_by_data(by_data(__doc__, RESULT, MODELS).parse_args(argv), jobs)


if __name__ == "__main__":
    main()
