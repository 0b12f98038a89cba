r"""Which posterior of a real cell foretells what of that cell it has not seen (not in the paper).

Every molecule of a held-out cell goes to one of two halves by a fair coin, x = x' + x''. What a
posterior makes of x' is scored by the other half,

.. math:: \log p(x'' | x') = \log E_{z, l \sim q(z, l | x')}\, p(x'' | x', z, l)

in nats a cell, with the decoder the same. The exact posterior scores best on average if the model
is right; whether it does of real cells is what is asked. Where a gene's count is Gamma-Poisson
with mean 2 m, its halves share the Gamma variable: given x' the other one is negative binomial,
with inverse dispersion theta + x' and mean m (theta + x') / (theta + m); and zero inflation, which
takes both or none, has taken a gene with the probability that x' = 0 leaves, none where x' > 0.

MixtureSCVI with its defaults ("default"), and with encoders that see a part of each cell in
training ("thinned", `thinning_rate=0.9`); DATASET/MODEL/S=1 and 4, for every seed: the score of

- "encoders", "100 steps", "exact": posteriors with the sum of x' for the depth l;
- "100 steps, depth latent", "exact, depth latent": of z and l, with scvi-tools' prior of l.

DATASET/powers/S=1 and 4: is the exact posterior of real cells too sure? The score of default
models by "power b" for b from 0.5 to 1: by p(x' | z)^b p(z), where 1 is the exact one of sums.

    python -m scmixvi.experiments.halves --seed 0
"""

import math
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import anndata as ad
import numpy as np
import torch
from scipy.sparse import csr_matrix
from scvi import REGISTRY_KEYS
from scvi.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial
from scvi.module._constants import MODULE_KEYS
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from scmixvi import MixtureSCVI
from scmixvi.experiments._cells.coverage import AT_ONCE, cell_means
from scmixvi.experiments._cells.trained_models import TrainedModels
from scmixvi.experiments.decoders import COMPONENTS, by_data, cells, looked_at, run_by_data
from scmixvi.singlecell._parts.cell_refinement import refined
from scmixvi.singlecell._parts.depth import with_depth
from scmixvi.singlecell._parts.distributions import log_standard_normal
from scmixvi.singlecell._queries.evidence import (
    cell_densities,
    posterior_draws,
    resampled,
    weighted_draws,
)

RESULT = Path(__file__).parent / "results" / "halves.json"
N_TEST, N_DRAWS, N_STEPS = 101, 400, 100
SUMS = ("encoders", f"{N_STEPS} steps", "exact")
LATENT = tuple(f"{stage}, depth latent" for stage in SUMS[1:])
MODELS: dict[str, dict[str, float]] = {"default": {}, "thinned": {"thinning_rate": 0.9}}
KINDS = (*MODELS, "powers")
POWERS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
DRAWS_AT_ONCE = 25


def halves(model: MixtureSCVI, indices: np.ndarray) -> tuple[ad.AnnData, np.ndarray]:
    """Half of the molecules of these cells, and the other half `[n, G]`."""
    adata = model.adata[indices]
    counts = model.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY)[indices]
    counts = counts.toarray() if hasattr(counts, "toarray") else np.asarray(counts)
    seen = np.random.binomial(counts.astype(int), 0.5)  # noqa: NPY002  by the experiment's seed
    half = ad.AnnData(csr_matrix(seen.astype(np.float32)), obs=adata.obs.copy(), var=adata.var[[]])
    return half, (counts - seen).astype(np.float32)


def draws_and_sizes(smoke: bool) -> tuple[int, dict[str, int]]:
    """Draws of a posterior, and what :func:`weighted_draws` has to choose them from."""
    if smoke:
        return 20, {"n_rounds": 2, "n_draws": 50, "n_final": 100}
    return N_DRAWS, {"n_final": 10 * N_DRAWS}


def draws_by_stage(
    module: nn.Module, latent: nn.Module, tensors: dict, encoded: dict, smoke: bool
) -> Iterator[tuple[str, Tensor]]:
    """Draws `[L, n, D]` of every posterior of half a cell; with log l last where it is latent."""
    n_draws, sizes = draws_and_sizes(smoke)
    n_steps = 2 if smoke else N_STEPS
    yield SUMS[0], encoded[MODULE_KEYS.QZ_KEY].sample((n_draws,))
    for which, stages in ((module, SUMS[1:]), (latent, LATENT)):
        yield stages[0], refined(which, tensors, n_steps).sample((n_draws,))
        with torch.no_grad():
            yield stages[1], posterior_draws(which, tensors, n_draws, **sizes)[0]


def draws_by_power(
    module: nn.Module, _: nn.Module, tensors: dict, encoded: dict, smoke: bool
) -> Iterator[tuple[str, Tensor]]:
    """Draws `[L, n, D]` of posteriors to which the counts say less, or all that they say."""
    n_draws, sizes = draws_and_sizes(smoke)
    with torch.no_grad():
        log_densities, encoder_draws = cell_densities(module, tensors)
        z, log_w = weighted_draws(log_densities, encoder_draws, **sizes)
        log_p = torch.cat([log_densities(part)[0] for part in z.split(N_DRAWS)]).double()
        log_likelihood = log_p - log_standard_normal(z)
    for power in POWERS:
        yield f"power {power}", resampled(z, log_w + (power - 1) * log_likelihood, n_draws)


def log_other_half(px: ZeroInflatedNegativeBinomial, seen: Tensor, other: Tensor) -> Tensor:
    """Log p(x'' | x', z, l), summed over genes: `[L, n]`; px is that of x'."""
    posterior = NegativeBinomial(
        mu=px.mu * (px.theta + seen) / (px.theta + px.mu), theta=px.theta + seen
    ).log_prob(other)
    log_zero = NegativeBinomial(mu=px.mu, theta=px.theta).log_prob(torch.zeros_like(seen))
    log_taken, log_left = logsigmoid(px.zi_logits), logsigmoid(-px.zi_logits) + log_zero
    log_both = torch.logaddexp(log_taken, log_left)
    nothing = torch.where(other == 0, log_taken - log_both, -torch.inf)
    inflated = torch.logaddexp(nothing, log_left - log_both + posterior)
    return torch.where(seen == 0, inflated, posterior).sum(-1)


def score(module: nn.Module, tensors: dict, encoded: dict, other: Tensor, states: Tensor) -> Tensor:
    """Log p(x'' | x') of draws `[L, n, D]`, or `[L, n, D + 1]` with log l: `[n]`."""
    seen, found = tensors[REGISTRY_KEYS.X_KEY], []
    for part in states.split(DRAWS_AT_ONCE):
        u, log_l = part.split([module.n_latent, part.shape[-1] - module.n_latent], dim=-1)
        if log_l.shape[-1] == 0:
            log_l = seen.sum(-1, keepdim=True).log().expand(len(u), -1, -1)
        outputs = module._outputs(encoded[MODULE_KEYS.QZ_KEY], None, log_l, u)
        with torch.no_grad():
            decoded = module.generative(**module._get_generative_input(tensors, outputs))
            found.append(log_other_half(decoded[MODULE_KEYS.PX_KEY], seen, other))
    return torch.cat(found).double().logsumexp(0) - math.log(len(states))


def figures(
    model: MixtureSCVI, indices: np.ndarray, draws_by: Callable, smoke: bool
) -> dict[str, float]:
    """The score of every posterior that `draws_by` draws from, means over cells."""
    half, other = halves(model, indices)
    others = iter(torch.from_numpy(other).split(AT_ONCE))
    latent = with_depth(model.module, False, model.adata_manager)

    def scores(tensors: dict, encoded: dict) -> dict[str, Tensor]:
        here = next(others)
        return {
            stage: score(model.module, tensors, encoded, here, states)
            for stage, states in draws_by(model.module, latent, tensors, encoded, smoke)
        }

    return cell_means(model, None, scores, half)


def jobs(arguments: Namespace, name: str) -> dict[str, Callable[[], dict]]:
    """Name to job for every size on one data set."""
    smoke, seed = arguments.smoke, arguments.seed
    adata, split, training = cells(name, seed, smoke)
    models = TrainedModels(arguments, adata, split, training, f"{name}/")
    some = looked_at(split, seed, N_TEST)["test"]

    def job(kind: str, size: int) -> dict:
        trained, draws_by = (
            ("default", draws_by_power) if kind == "powers" else (kind, draws_by_stage)
        )
        options = {"n_components": size, **MODELS[trained]}
        model, n_epochs = models.by_default(f"{trained}/S={size}", None, **options)
        found = figures(model, some, draws_by, smoke)
        return found | {"n_cells": len(some), "n_epochs": n_epochs}

    return {
        f"{name}/{kind}/S={size}": partial(job, kind, size)
        for kind, size in product(arguments.models, COMPONENTS)
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Score what is not yet in the JSON for this seed."""
    run_by_data(by_data(__doc__, RESULT, KINDS).parse_args(argv), jobs)


if __name__ == "__main__":
    main()
