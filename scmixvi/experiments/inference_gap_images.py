"""The gap of each image, split by family: the MLP on MNIST (not in the paper).

What :mod:`scmixvi.experiments.inference_gap` does for cells, for the mixtures of
:mod:`scmixvi.experiments.latents` with one and four encoders: every image gets posteriors of its
own, of three families, and what these leave is the family's part of the gap. Log p(x) is estimated
from below, by draws of a Student distribution like the fitted Gaussian with full covariance.
Checkpoints are those of `latents`, so what was trained there is not trained again.

    python -m scmixvi.experiments.inference_gap_images --seed 0 --epochs 50 --learning-rate 1e-3
"""

import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scmixvi.core import fitted_gaussians
from scmixvi.experiments import latents
from scmixvi.experiments._families import (
    FAMILIES,
    LogJoint,
    best,
    bound_of,
    gaussians,
    weighted_draws,
)
from scmixvi.experiments._images.training import Models, chosen_device, start_random
from scmixvi.image import ImageVAE
from scmixvi.image.batches import binarise_once
from scmixvi.singlecell._queries.evidence import effective_draws

RESULT = Path(__file__).parent / "results" / "inference_gap_images.json"
COMPONENTS, STEPS = (1, 4), 100
N_IMAGES, N_STEPS, N_DRAWS, N_FINAL = 100, 400, 300, 5000


def log_joint_of(vae: ImageVAE, x: Tensor) -> LogJoint:
    """From z `[L, S, B, D]` to log p(x, z) `[L, S, B]`; one level of latents."""

    def log_joint(z: Tensor) -> Tensor:
        return vae.decoder(z).log_prob(x) + vae.prior().log_prob((z,))

    return log_joint


def gaps(vae: ImageVAE, x: Tensor, smoke: bool) -> dict[str, float]:
    """Log p(x), the gap of encoders and of every family, means over images; nats."""
    log_joint, n_draws = log_joint_of(vae, x), 20 if smoke else N_DRAWS
    with torch.no_grad():
        base = vae.posterior(x).stages[0].conditional()
        loc, scale = base.mean, base.variance.sqrt()
    posteriors = {"encoders": gaussians(loc, scale)}
    n_steps = 2 if smoke else STEPS
    posteriors[f"{STEPS} steps"] = gaussians(*fitted_gaussians(loc, scale, log_joint, n_steps))
    for family in FAMILIES:
        posteriors[family] = best(family, loc, scale, log_joint, 2 if smoke else N_STEPS)
    with torch.no_grad():
        full, n_passes = posteriors["full covariance"], 1 if smoke else -(-N_FINAL // n_draws)
        passes = (weighted_draws(full, log_joint, n_draws) for _ in range(n_passes))
        log_w = torch.cat([weights for _, weights in passes])
        log_p = log_w.logsumexp(0) - math.log(len(log_w))
        found = {
            "log_p": log_p,
            "effective_share": effective_draws(log_w) / len(log_w),
            **{f"gap/{k}": log_p - bound_of(q, log_joint, n_draws) for k, q in posteriors.items()},
        }
    return {name: values.double().mean().item() for name, values in found.items()}


def figures(models: Models, n_components: int, sizes: dict[str, Any], smoke: bool) -> dict:
    """Train or load one mixture, and split its gap on test and on training images."""
    vae, trainings = latents.mixture(models, n_components, sizes)
    vae = vae.eval().requires_grad_(False)
    (training_images,) = binarise_once(models.data.train_dataloader().pixels)
    found: dict[str, Any] = {"trainings": trainings}
    for group, images in (("test", models.test_images), ("training", training_images)):
        start_random(models.seed, f"inference_gap/{group}")  # the same images whatever S
        chosen = images[torch.randperm(len(images))[: 8 if smoke else N_IMAGES]]
        found[group] = gaps(vae, chosen.to(chosen_device()), smoke) | {"n_images": len(chosen)}
    return found


def jobs(models: Models, dataset: str, sizes: dict[str, Any], smoke: bool) -> latents.Jobs:
    """Name to job for every mixture of one data set."""
    return {
        f"{dataset}/mixture/S={s}": partial(figures, models, s, sizes, smoke) for s in COMPONENTS
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Split the gap of what is not yet in the JSON."""
    latents.run_on_mixtures(__doc__, RESULT, argv, jobs, lambda models: asdict(models.scheme))


if __name__ == "__main__":
    main()
