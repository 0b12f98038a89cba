"""Test log-likelihood of every image model (Tables 1, 2 and 3, Figures 2 and 3 of the paper).

The recipes of :mod:`scmixvi.image.recipes` at the paper's sizes and scheme, in order of cost: on
MNIST vanilla, hierarchical, IAF, VampPrior and composite with S = 1, 2, 4 and 3, the composite
without flows (S = 1, Table 3); on Fashion-MNIST vanilla and composite; CIFAR-10; on MNIST vanilla
with S = 5 to 10 (Figure 3); the other recipes on Fashion-MNIST, which the paper does not show; and
on MNIST, not in the paper either, composite with S = 5, 6 and 8, an attempt to get below the 76.93
nats of CR-NVAE.

Meant for a GPU, over several runs: with `--minutes` it stops after the checkpoint that follows, and
the same command goes on from there. Test log-likelihood by Eq. 17, L = 5000 (CIFAR-10: 100), and,
less dependent on the encoders, by 500 samples of posteriors that are refined for every image. What
batch norm as in the released code changes of Eq. 17 stands beside them. Some models trained for a
few epochs on a CPU are in `image_nll_short.json`.

    python -m scmixvi.experiments.image_nll --seed 0 --minutes 110
    python -m scmixvi.experiments.image_nll --seed 0 --datasets mnist --recipes vanilla
"""

import argparse
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from scmixvi.experiments import _common
from scmixvi.experiments._images import tests as _image_tests
from scmixvi.experiments._images.training import (
    Deadline,
    Models,
    Scheme,
    at_least_one,
    chosen_device,
    parser,
    scheme_of,
    until_deadline,
)
from scmixvi.image import bits_per_dim
from scmixvi.image.lightning import VAETraining, recipe_training

RESULT = Path(__file__).parent / "results" / "image_nll.json"
TABLE_1 = ("vanilla", "hierarchical", "iaf", "vamp", "composite")
ROWS: tuple[tuple[str, str, Sequence[int]], ...] = (
    *(("mnist", recipe, (1, 2, 4, 3)) for recipe in TABLE_1),
    ("mnist", "hierarchical_vamp", (1,)),
    ("fashion_mnist", "vanilla", (1, 2, 4, 3)),
    ("fashion_mnist", "composite", (1, 2, 4, 3)),
    ("cifar10", "cifar_vanilla", (1, 2, 4, 3)),
    ("mnist", "vanilla", range(5, 11)),
    *(("fashion_mnist", recipe, (1, 2, 4, 3)) for recipe in TABLE_1[1:-1]),
    ("mnist", "composite", (5, 6, 8)),
)
"""Data set, recipe and S, in the order of running."""

DATASETS = ("mnist", "fashion_mnist", "cifar10")
RECIPES = tuple(dict.fromkeys(recipe for _, recipe, _ in ROWS))
CIFAR_SCHEME, CIFAR_SAMPLES = Scheme(epochs=1000, patience=1000), 100

_TINY = {"channels": (2,) * 5, "n_latent": 4, "n_hidden": 8, "n_features": 4, "n_layers": 2}
SMOKE_SIZES: dict[str, dict[str, Any]] = {
    "vanilla": _TINY,
    "hierarchical": _TINY,
    "iaf": _TINY | {"n_flow_hidden": 8},
    "vamp": _TINY | {"n_pseudo_inputs": 5},
    "hierarchical_vamp": _TINY | {"n_pseudo_inputs": 5},
    "composite": _TINY | {"n_flow_hidden": 8, "n_pseudo_inputs": 5},
    "cifar_vanilla": _TINY,
}


def cells(options: argparse.Namespace) -> list[tuple[str, str, int]]:
    """Data set, recipe and S of what was asked for, in order; a smoke run takes two S a row."""
    return [
        (dataset, recipe, s)
        for dataset, recipe, components in ROWS
        if dataset in options.datasets and recipe in options.recipes
        for s in (components[:2] if options.smoke else components)
        if not options.components or s in options.components
    ]


def figures(
    models: Models, recipe: str, n_components: int, sizes: dict[str, Any], compiled: str | None
) -> dict[str, Any]:
    """Train and test one model."""

    def make() -> VAETraining:
        module = recipe_training(
            recipe,
            n_components,
            sizes,
            warmup_epochs=models.scheme.warmup_epochs,
            learning_rate=models.scheme.learning_rate,
        )
        if compiled:
            module.vae.compile(mode=compiled)
        return module

    name = f"{recipe}_S{n_components}"
    vae, record = models.trained(name, make)
    tested = _image_tests.nll(models, name, vae)
    return {
        **tested,
        **_image_tests.refined_nll(models, name, vae),
        **_image_tests.nll_change_by_batch_norm(models, name, vae),
        "bits_per_dim": round(bits_per_dim(tested["nll"], math.prod(vae.image_size)), 5),
        "data": models.data.name,
        "n_parameters": sum(p.numel() for p in vae.parameters()),
        "trainings": [record],
    }


def models_of(dataset: str, options: argparse.Namespace, deadline: Deadline) -> Models:
    """Models of a data set, by the scheme and with the L that the paper has for it."""
    is_cifar = dataset == "cifar10"
    scheme = scheme_of(options, CIFAR_SCHEME if is_cifar else None)
    samples = options.samples or (CIFAR_SAMPLES if is_cifar else 5000)
    own = argparse.Namespace(**vars(options) | {"samples": samples})
    return Models(dataset, own, scheme, deadline, options.test_images, precision=options.precision)


def main(argv: Sequence[str] | None = None) -> None:
    """Train and test what is not yet in the JSON."""
    arguments = parser(__doc__, RESULT, None)
    arguments.add_argument("--datasets", nargs="+", choices=DATASETS, default=DATASETS)
    arguments.add_argument("--recipes", nargs="+", choices=RECIPES, default=RECIPES)
    arguments.add_argument("--components", nargs="+", type=at_least_one, help="only these S")
    arguments.add_argument(
        "--test-images", type=at_least_one, help="test on so many, evenly spaced (default: all)"
    )
    arguments.add_argument("--precision", default="32-true", help="of Lightning's Trainer")
    arguments.add_argument("--compile", help="mode of torch.compile, such as reduce-overhead")
    options = arguments.parse_args(argv)
    if not cells(options):
        arguments.error(
            "there is no model of all of these --datasets, --recipes and --components: leave one "
            "of them out (cifar_vanilla is of cifar10, all others are not; few recipes have S > 4; "
            "--smoke takes two S of a row)"
        )
    deadline, found = Deadline(options.minutes), {}
    with until_deadline():
        for dataset, recipe, s in cells(options):
            if dataset not in found:
                found[dataset] = models_of(dataset, options, deadline)
            models, sizes = found[dataset], SMOKE_SIZES[recipe] if options.smoke else {}
            job = partial(figures, models, recipe, s, sizes, options.compile)
            jobs = {f"{dataset}/{recipe}/S={s}": job}
            _common.run_missing(options, jobs, chosen_device(), models.settings)


if __name__ == "__main__":
    main()
