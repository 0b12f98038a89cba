"""How the image experiments test what they have trained, over any number of runs.

A test goes on from a file in the model's folder, such as `nll_by_component_L*.pt`, and stops at a
deadline, where one is set, after the hundred images that it is at.
"""

import hashlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from scmixvi.core import log_mixture
from scmixvi.experiments._images.batch_norm import nlls_by_statistics
from scmixvi.experiments._images.training import Models, chosen_device, start_random
from scmixvi.image import ImageVAE
from scmixvi.image._evaluation import eq_17_and_pooled
from scmixvi.image._folders import in_turn_in
from scmixvi.image.checkpoints import read_checkpoint, write_checkpoint

TEST_BATCH = 100
REFINED_SAMPLES = 500  # drawn from each image's own posterior, at most
BATCH_NORM_SAMPLES = 100  # with batch norm as in the released code, at most


def nll(models: Models, name: str, vae: ImageVAE, n_repeats: int = 1) -> dict[str, Any]:
    """Test negative log-likelihood by Eq. 17 (one component: Eq. 18), in nats.

    Beside it the pooled estimate from the same draws: all S * L (Eq. 18: all repeats) weights
    inside one logarithm. It is the tighter of the two, for Eq. 17 keeps a gap where a component
    answers for another share of the posterior than its weight.

    Parameters
    ----------
    models
        Among which it was trained.
    name
        Of the model's folder.
    vae
        On the device to compute on, with uniform weights.
    n_repeats
        Average so many estimates of L samples each: S in Eq. 18.

    Returns
    -------
    `nll`, `nll_standard_error` over the images (None of one), `nll_pooled`, `n_test_images`,
    `n_test_samples` (L).

    Raises
    ------
    OutOfTime
        If the deadline came before the end.
    """
    file = f"nll_by_component_L{models.n_test_samples}x{n_repeats}.pt"

    def score(x: Tensor) -> Tensor:
        repeats = (vae.nll_by_component(x, models.n_test_samples) for _ in range(n_repeats))
        return torch.cat(list(repeats))

    strata = _of_every_image(models, name, vae, file, "test", score)
    eq_17, pooled = eq_17_and_pooled(strata)
    return _mean("nll", eq_17) | {
        "nll_pooled": round(float(pooled.mean()), 4),
        "n_test_images": len(eq_17),
        "n_test_samples": models.n_test_samples,
    }


def refined_nll(models: Models, name: str, vae: ImageVAE) -> dict[str, float | int]:
    """The same by posteriors of each image's own, from fewer samples.

    So a model's NLL depends less on how good its encoders are.

    Parameters
    ----------
    models, name, vae
        As in :func:`nll`.

    Returns
    -------
    `nll_refined` (all weights inside one logarithm), `nll_refined_eq17`,
    `n_refinement_steps`, `n_refined_samples`.

    Raises
    ------
    OutOfTime
        If the deadline came before the end.
    """
    n_samples, n_steps = min(models.n_test_samples, REFINED_SAMPLES), models.n_refinement_steps
    file = f"nll_after_{n_steps}_steps_L{n_samples}.pt"
    score = partial(
        vae.nll_by_component, n_importance_samples=n_samples, n_refinement_steps=n_steps
    )
    strata = _of_every_image(models, name, vae, file, "refined", score)
    eq_17, pooled = eq_17_and_pooled(strata)
    return {
        "nll_refined": round(float(pooled.mean()), 4),
        "nll_refined_eq17": round(float(eq_17.mean()), 4),
        "n_refinement_steps": n_steps,
        "n_refined_samples": n_samples,
    }


def nll_change_by_batch_norm(models: Models, name: str, vae: ImageVAE) -> dict[str, Any]:
    """How much lower or higher Eq. 17 is with batch norm as the released code tests.

    See :func:`scmixvi.experiments._images.batch_norm.nlls_by_statistics`: both from the same draws,
    a hundred images together.

    Parameters
    ----------
    models, name, vae
        As in :func:`nll`.

    Returns
    -------
    `nll_change_by_batch_norm`, in nats, and its `_standard_error` over the images;
    `n_batch_norm_samples`.

    Raises
    ------
    OutOfTime
        If the deadline came before the end.
    """
    n_samples = min(models.n_test_samples, BATCH_NORM_SAMPLES)
    file = f"nll_by_batch_norm_L{n_samples}.pt"

    def score(x: Tensor) -> Tensor:
        return nlls_by_statistics(vae, x, n_samples).flatten(0, 1)

    strata = _of_every_image(models, name, vae, file, "batch norm", score)
    running, batch = strata.unflatten(0, (2, -1)).mean(1)
    return _mean("nll_change_by_batch_norm", batch - running) | {"n_batch_norm_samples": n_samples}


def _mean(name: str, of_images: Tensor) -> dict[str, float | None]:
    """A figure of every image, `[n]`: its mean, and the standard error of that; None of one."""
    error = of_images.std() / len(of_images) ** 0.5 if len(of_images) > 1 else None
    return {
        name: round(float(of_images.mean()), 4),
        f"{name}_standard_error": None if error is None else round(float(error), 4),
    }


def _of_every_image(
    models: Models,
    name: str,
    vae: ImageVAE,
    file: str,
    draws: str,
    score: Callable[[Tensor], Tensor],
) -> Tensor:
    """What `score` finds for every test image, a hundred at a time: `[K, n]`, in nats.

    What is done is kept in the model's folder after every 100 images, and every 100 images
    have a random state of their own, after `draws`: an interrupted test ends as a whole one
    would, and a second process waits for the first. What was kept of other weights is not used
    (files that do not say of which are).
    """
    some = "" if models.n_test_images is None else f"{models.n_test_images}_images_"
    path = models.folder / name / (some + file)
    strata, weights = torch.empty(0, 0), fingerprint(vae)
    with in_turn_in(path.parent):
        kept = read_checkpoint(path) if path.exists() else {"weights": None}
        if kept.get("weights", weights) == weights:
            strata = kept["state_dict"]["nll"]
        images, said = models.test_images, time.monotonic()
        for start in range(strata.shape[1], len(images), TEST_BATCH):
            models.deadline.check()
            start_random(models.seed, f"{name}/{draws}/{start}")
            x = images[start : start + TEST_BATCH].to(chosen_device())
            found = score(x).cpu()
            strata = torch.cat([strata, found], dim=1) if start else found
            write_checkpoint({"state_dict": {"nll": strata}, "weights": weights}, path)
            if time.monotonic() - said > 30:
                said = time.monotonic()
                print(f"{path}: {strata.shape[1]} of {len(images)} images", flush=True)
    return strata


@torch.no_grad()
def bound(models: Models, name: str, vae: ImageVAE, n_draws: int = 10) -> float:
    """MISELBO of the test images in nats: L = 1, averaged over draws from every component.

    Parameters
    ----------
    models, name
        Of the random numbers, as in :meth:`Models.trained`.
    vae
        On the device to compute on, in evaluation mode, with uniform weights.
    n_draws
        Draws a component.
    """
    start_random(models.seed, f"{name}/bound")
    bounds = []
    for x in models.test_images.split(TEST_BATCH):
        terms = vae(x.to(chosen_device()), n_draws)
        by_draw = terms.log_lik + terms.log_prior - log_mixture(terms.log_q_all)
        bounds.append(by_draw.mean((0, 1)).cpu())
    return round(float(torch.cat(bounds).mean()), 4)


def fingerprint(module: nn.Module) -> str:
    """A digest of a model's weights: another one for other weights."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
