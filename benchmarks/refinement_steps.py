"""How far gradient steps of each cell's own posterior get, by today's steps and by Adam's betas.

    python -m benchmarks.refinement_steps --seed 0

"now" are the steps of :class:`scmixvi.core.Ascent`, as `n_refinement_steps` takes them. "before"
are those of the oldest experiments: Adam with its own betas, 0.9 and 0.999, at a rate of 0.06 that
rises over ten steps. Both start at the same encoders of MixtureSCVI with its defaults, S = 1 and 4,
see the same cells, and draw the same noise.

What is left is the gap of held-out cells, log p(x) - MISELBO = KL(q(z|x) || p(z|x)), in nats a
cell: log p(x) by a proposal adapted to every cell, MISELBO by 300 draws of every component.
"""

from collections.abc import Sequence
from functools import partial

import torch
from scvi import settings
from scvi.module._constants import MODULE_KEYS

from benchmarks import RESULTS
from scmixvi import MixtureSCVI
from scmixvi.core import Ascent, MixturePosterior, fitted_gaussians
from scmixvi.core.modes import evaluating, frozen
from scmixvi.experiments import _common
from scmixvi.experiments._cells import training as singlecell
from scmixvi.experiments._families import bound_of, gaussians
from scmixvi.experiments.decoders import DATASETS, cells, converged, looked_at
from scmixvi.singlecell._parts.cell_refinement import log_joint_of

RESULT = RESULTS / "refinement_steps.json"
COMPONENTS = (1, 4)
ASCENTS = {"now": Ascent(), "before": Ascent(0.06, (0.9, 0.999), 10)}
STEPS = (12, 25, 50, 100)
N_CELLS, A_PASS, N_PASSES = 100, 10, 30


def gaps(data: str, n_components: int, seed: int, smoke: bool) -> dict[str, float]:
    """Gaps of one model's encoders, and after steps of either kind."""
    adata, split, _ = cells(data, seed, smoke)
    settings.seed = seed
    model = MixtureSCVI(adata, n_components=n_components)
    singlecell.train_default(model, split, 2 if smoke else None, latent_key=None)
    module, n_passes = model.module.eval(), 2 if smoke else N_PASSES
    indices = looked_at(split, seed, N_CELLS, 1)["test"]
    sizes = {"n_rounds": 2, "n_draws": 50, "n_final": 100} if smoke else {}
    log_p = converged(model, indices, **sizes)["log_p"]
    (tensors,) = model._make_data_loader(adata=adata, indices=indices, batch_size=len(indices))
    with torch.no_grad():
        encoded = module._encoded_whole(tensors)
    qz, log_joint = encoded[MODULE_KEYS.QZ_KEY], log_joint_of(module, tensors, encoded)
    loc, scale = qz.c_loc.transpose(0, 1), qz.c_scale.transpose(0, 1)

    def gap(posterior: MixturePosterior) -> float:
        with torch.no_grad():
            bounds = [bound_of(posterior, log_joint, A_PASS) for _ in range(n_passes)]
        return round(log_p - torch.stack(bounds).mean().item(), 4)

    found = {"encoders": gap(qz.posterior), "n_cells": len(indices)}
    for name, ascent in ASCENTS.items():
        for n_steps in STEPS[:1] if smoke else STEPS:
            torch.manual_seed(seed)
            with frozen(module.parameters()), evaluating(module):
                fitted = fitted_gaussians(loc, scale, log_joint, n_steps, ascent=ascent)
            found[f"{name}/{n_steps} steps"] = gap(gaussians(*fitted))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Train and refine what the JSON lacks for this seed."""
    options = _common.parse(__doc__, RESULT, argv)
    singlecell.quiet()
    jobs = {
        f"{data}/S={s}": partial(gaps, data, s, options.seed, options.smoke)
        for data in (DATASETS[:1] if options.smoke else DATASETS)
        for s in COMPONENTS
    }
    _common.run_missing(options, jobs)


if __name__ == "__main__":
    main()
