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

from scmixvi.experiments import _common, latents
from scmixvi.experiments._image_training import (
    Deadline,
    Models,
    checkpoints_beside,
    chosen_device,
    parser,
    scheme_of,
    until_deadline,
)

RESULT = Path(__file__).parent / "results" / "monotone_images.json"


def figures(models: Models, n_components: int, sizes: dict[str, Any]) -> dict[str, Any]:
    """Train and test one mixture."""
    vae, trainings = latents.mixture(models, n_components, sizes)
    name = f"mixture_S{n_components}"
    tested, bound = models.nll(name, vae), models.bound(name, vae)
    gap = round(-tested["nll_pooled"] - bound, 4)
    return {**tested, "miselbo": bound, "gap": gap, "trainings": trainings}


def main(argv: Sequence[str] | None = None) -> None:
    """Train and test what is not yet in the JSON."""
    arguments = parser(__doc__, RESULT)
    arguments.add_argument("--datasets", nargs="+", choices=latents.DATASETS, default=["mnist"])
    options = arguments.parse_args(argv)
    beside = options.result.with_name(latents.RESULT.name)
    options.checkpoints = options.checkpoints or checkpoints_beside(beside, options.smoke)
    sizes = latents.SMOKE_SIZES if options.smoke else {}
    with until_deadline():
        for dataset in options.datasets:
            models = Models(dataset, options, scheme_of(options), Deadline(options.minutes))
            jobs = {
                f"{dataset}/S={s}": partial(figures, models, s, sizes) for s in latents.COMPONENTS
            }
            _common.run_missing(options, jobs, chosen_device(), models.settings)


if __name__ == "__main__":
    main()
