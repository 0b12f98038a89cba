"""Is the test log-likelihood monotone in S (section 4.2.2 of the paper)? The MLP on images.

Trains the mixtures of `latents` alone, S = 1 to 5, and records their negative log-likelihood, and
the gap from the pooled estimate of it down to MISELBO.
Checkpoints are those of `latents`, so what was trained there is only tested here, and the reverse.

    python -m scmixvi.experiments.monotone_images --seed 0 --epochs 100
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from scmixvi.experiments import latents
from scmixvi.experiments._images import tests as _image_tests
from scmixvi.experiments._images.training import Models

RESULT = Path(__file__).parent / "results" / "monotone_images.json"


def figures(models: Models, n_components: int, sizes: dict[str, Any]) -> dict[str, Any]:
    """Train and test one mixture."""
    vae, trainings = latents.mixture(models, n_components, sizes)
    name = f"mixture_S{n_components}"
    tested, bound = _image_tests.nll(models, name, vae), _image_tests.bound(models, name, vae)
    gap = round(-tested["nll_pooled"] - bound, 4)
    return {**tested, "miselbo": bound, "gap": gap, "trainings": trainings}


def jobs(models: Models, dataset: str, sizes: dict[str, Any], smoke: bool) -> latents.Jobs:
    """Name to job for every mixture of one data set."""
    return {f"{dataset}/S={s}": partial(figures, models, s, sizes) for s in latents.COMPONENTS}


def main(argv: Sequence[str] | None = None) -> None:
    """Train and test what is not yet in the JSON."""
    latents.run_on_mixtures(__doc__, RESULT, argv, jobs, lambda models: models.settings)


if __name__ == "__main__":
    main()
