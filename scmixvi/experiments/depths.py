"""What becomes of a cell's posterior where its depth is not taken for known (not in the paper).

SCVI takes the sum of a cell's counts for its depth, and :mod:`scmixvi.experiments.calibration`
shows what that costs where the truth is known. Here the depth l is latent, with scvi-tools' prior:
log l is Gaussian, with the mean and variance of the batch's log sums. MixtureSCVI with its
defaults otherwise, S = 1 and 4; rows, for every data set and seed:

DATASET/inferred/S=1 and 4
    The models, and the cells that they draw, of :mod:`scmixvi.experiments.calibration`, which were
    trained with sums; only the posteriors that intervals are made of are those of (z, l)
    (`get_posterior_samples(use_observed_lib_size=False)`). A Gaussian at the log sum stands for
    the encoder of l that these models lack. And how exact posteriors of the real cells differ.
DATASET/latent/S=1 and 4
    Models that were trained so (`use_observed_lib_size=False`), and cells that they draw, depths
    too. How far their posteriors are from the exact ones, (z, l) both, for cells that are held out
    and cells that they were trained on: as the encoders give them, and after 50 and 100 steps of
    each cell's own.

    python -m scmixvi.experiments.depths --seed 0
"""

import copy
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from scmixvi import MixtureSCVI
from scmixvi.experiments._cells.trained_models import TrainedModels
from scmixvi.experiments.calibration import N_SIMULATED, held, simulated
from scmixvi.experiments.decoders import COMPONENTS, by_data, cells, looked_at, run_by_data
from scmixvi.singlecell._parts.depth import with_depth

RESULT = Path(__file__).parent / "results" / "depths.json"
KINDS = ("inferred", "latent")
STEPS = {"encoders": 0, "50 steps": 50, "100 steps": 100}
N_TEST, N_TRAINING, N_DRAWS = 101, 81, 400


def of_latent_depth(model: MixtureSCVI) -> MixtureSCVI:
    """The model with the same weights, to which depths are latent."""
    there = copy.copy(model)
    there.module = with_depth(model.module, False, model.adata_manager)
    return there


def compared(model: MixtureSCVI, indices: np.ndarray, smoke: bool) -> dict[str, float]:
    """Exact posteriors of real cells, depths latent against observed; means over cells, latents.

    "width" is the ratio of standard deviations, and "shift" how far means are apart, in standard
    deviations with depths observed.
    """
    n_draws = 20 if smoke else N_DRAWS
    observed, latent = (
        model.get_posterior_samples(
            indices=indices, n_samples=n_draws, progress=False, use_observed_lib_size=known
        )
        for known in (True, False)
    )
    width = latent.std(0) / observed.std(0)
    shift = np.abs(latent.mean(0) - observed.mean(0)) / observed.std(0)
    return {"width": float(width.mean()), "shift": float(shift.mean())}


def gap_figures(model: MixtureSCVI, indices: np.ndarray, smoke: bool) -> dict[str, float]:
    """Log p(x), and the gaps from there to MISELBO by stage; means over cells."""
    found: dict[str, float] = {}
    for stage, n_steps in STEPS.items():
        table = model.get_variational_gap(
            indices=indices[:3] if smoke else indices,
            n_samples=40 if smoke else N_DRAWS,
            progress=False,
            n_refinement_steps=n_steps,
        )
        found[f"gap/{stage}"] = table["gap"].mean()
        found |= table[["log_likelihood", "effective_share", "still_rising"]].mean().to_dict()
    return {key: float(value) for key, value in found.items()}


def jobs(arguments: Namespace, name: str) -> dict[str, Callable[[], dict]]:
    """Name to job for both kinds of models and every size on one data set."""
    smoke, seed = arguments.smoke, arguments.seed
    adata, split, training = cells(name, seed, smoke)
    models = TrainedModels(arguments, adata, split, training, f"{name}/")
    some = looked_at(split, seed, N_SIMULATED)["test"]

    def inferred(size: int) -> dict:
        model, n_epochs = models.default(size)
        drawn, z = simulated(model, some)
        found = held(of_latent_depth(model), drawn, z, smoke) | compared(model, some, smoke)
        return found | {"n_cells": len(some), "n_epochs": n_epochs}

    def latent(size: int) -> dict:
        arguments = {"n_components": size, "use_observed_lib_size": False}
        model, n_epochs = models.by_default(f"latent depth/S={size}", None, **arguments)
        found = held(model, *simulated(model, some), smoke)
        for group, indices in looked_at(split, seed, N_TEST, N_TRAINING).items():
            found[group] = gap_figures(model, indices, smoke) | {"n_cells": len(indices)}
        return found | {"n_cells": len(some), "n_epochs": n_epochs}

    makes = {"inferred": inferred, "latent": latent}
    return {
        f"{name}/{kind}/S={size}": partial(makes[kind], size)
        for kind, size in product(arguments.models, COMPONENTS)
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Ask what is not yet in the JSON for this seed."""
    run_by_data(by_data(__doc__, RESULT, KINDS).parse_args(argv), jobs)


if __name__ == "__main__":
    main()
