"""Do path gradients find a better model? The MLP on images (not in the paper).

Trains mixtures twice, by the whole gradient of MISELBO and by path gradients
(:class:`scmixvi.image.lightning.VAETraining`), from the same weights and with the same images in
the same order, and records the bound on the validation images and the negative log-likelihood of
the test images.

    python -m scmixvi.experiments.path_gradients --seed 0 --epochs 20
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from scmixvi.experiments import _common, latents
from scmixvi.experiments._images import tests as _image_tests
from scmixvi.experiments._images.training import (
    Deadline,
    Models,
    chosen_device,
    parser,
    scheme_of,
    start_random,
    until_deadline,
)
from scmixvi.image.lightning import VAETraining, recipe_training

RESULT = Path(__file__).parent / "results" / "path_gradients.json"
GRADIENTS = {"whole": False, "path": True}


def figures(
    models: Models, n_components: int, gradient: str, sizes: dict[str, Any]
) -> dict[str, Any]:
    """Train and test one mixture."""

    def make() -> VAETraining:
        start_random(models.seed, f"S={n_components}")  # whatever the gradient
        return recipe_training(
            "mlp",
            n_components,
            sizes,
            **latents.settings(models),
            path_gradient=GRADIENTS[gradient],
        )

    name = f"{gradient}_S{n_components}"
    vae, record = models.trained(name, make)
    return {**_image_tests.nll(models, name, vae), "trainings": [record]}


def main(argv: Sequence[str] | None = None) -> None:
    """Train and test what is not yet in the JSON."""
    arguments = parser(__doc__, RESULT)
    arguments.add_argument("--datasets", nargs="+", choices=latents.DATASETS, default=["mnist"])
    arguments.add_argument("--components", nargs="+", type=int, default=[1, 2, 4])
    options = arguments.parse_args(argv)
    sizes = latents.SMOKE_SIZES if options.smoke else {}
    with until_deadline():
        for dataset in options.datasets:
            models = Models(dataset, options, scheme_of(options), Deadline(options.minutes))
            jobs = {
                f"{dataset}/S={s}/{gradient}": partial(figures, models, s, gradient, sizes)
                for s in options.components
                for gradient in GRADIENTS
            }
            _common.run_missing(options, jobs, chosen_device(), models.settings)


if __name__ == "__main__":
    main()
