"""Latent representations of images (Tables 4, 5 and 8 of the paper).

MLP VAEs on MNIST and Fashion-MNIST, S = 1 to 5:

vae
    the model of S = 1; its features are 2S draws from q(z | x), so that there are as many;
ensemble
    S encoders trained one by one against the decoder of S = 1, which stays fixed; the ensemble of
    S is that of S - 1 and one more;
mixture
    S encoders trained jointly by MISELBO.

Features of the last two are the means and variances of all components, 80 S columns. A linear
SVM (StandardScaler, then LinearSVC with C = 0.025) is fitted on three quarters of the 10,000 test
images and scored on the rest, over random splits that all models share. The paper says no more
than "a linear SVM from scikit-learn"; split and C are those of its single-cell code (305 of 405
cells, 200 splits). Beside it stands the accuracy on all test images of a classifier fitted on the
50,000 training images.

The paper's features grow with S. So beside them stands the same comparison at equal feature
count: scaled, rotated and cut to 80 columns by principal components, all fitted on the training
images without their labels. At S = 1 nothing is cut, and a rotation changes no linear SVM.

It also records the test log-likelihood (Eq. 17) and the Jensen-Shannon divergence (Eq. 19), both
on the test images.

    python -m scmixvi.experiments.latents --seed 0 --epochs 100 --samples 500
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.model_selection import ShuffleSplit
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from torch import Tensor

from scmixvi.experiments import _common
from scmixvi.experiments._images import tests as _image_tests
from scmixvi.experiments._images.training import (
    Deadline,
    Models,
    checkpoints_beside,
    chosen_device,
    parser,
    scheme_of,
    start_random,
    until_deadline,
)
from scmixvi.image import ImageVAE, recipes
from scmixvi.image.baselines import ensemble, ensemble_member
from scmixvi.image.batches import binarise_once
from scmixvi.image.lightning import VAETraining, recipe_training

RESULT = Path(__file__).parent / "results" / "latents.json"
DATASETS = ("mnist", "fashion_mnist")
MODELS = ("vae", "ensemble", "mixture")
COMPONENTS = (1, 2, 3, 4, 5)
N_COLUMNS, TEST_SHARE = 80, 0.25
Jobs = dict[str, Callable[[], dict[str, Any]]]
SMOKE_SIZES = {"n_latent": 4, "encoder_hidden": (16,), "decoder_hidden": (16,)}


def mixture(models: Models, n_components: int, sizes: dict[str, Any]) -> tuple[ImageVAE, list]:
    """S encoders trained jointly, and the record of the training."""

    def make() -> VAETraining:
        return recipe_training("mlp", n_components, sizes, **settings(models))

    vae, record = models.trained(f"mixture_S{n_components}", make)
    return vae, [record]


def separate(models: Models, n_components: int, sizes: dict[str, Any]) -> tuple[ImageVAE, list]:
    """The S = 1 model and S - 1 encoders trained against its decoder, and their records."""
    first, records = mixture(models, 1, sizes)

    def make() -> VAETraining:
        member = ensemble_member(first, recipes.mlp(**sizes).posterior.to(chosen_device()))
        return VAETraining(member, **settings(models))

    members = [first]
    for i in range(2, n_components + 1):
        member, record = models.trained(f"member_{i}", make)
        members.append(member)
        records.append(record)
    return ensemble(members).eval(), records


def settings(models: Models) -> dict[str, Any]:
    """What the scheme says of a training, as :class:`VAETraining` takes it."""
    return {
        "warmup_epochs": models.scheme.warmup_epochs,
        "learning_rate": models.scheme.learning_rate,
    }


@torch.no_grad()
def features(vae: ImageVAE, x: Tensor, n_draws: int = 0) -> np.ndarray:
    """Means and variances of all components, `[n, 2 S D]`; or so many draws from q side by side."""
    device, parts = next(vae.parameters()).device, []
    for batch in x.split(1000):
        batch = batch.to(device)
        if n_draws:
            part = vae.posterior(batch).sample(n_draws)[0].transpose(0, 1).flatten(1)
        else:
            part = vae.encode(batch, "params")
        parts.append(part.cpu())
    return torch.cat(parts).numpy()


def classifier(scale: bool = True) -> Pipeline:
    """StandardScaler, then LinearSVC with the constants of the released code."""
    steps = [StandardScaler()] if scale else []
    return make_pipeline(*steps, LinearSVC(C=0.025, tol=1e-4, random_state=0))


def accuracies(
    features: np.ndarray, labels: np.ndarray, n_splits: int, *, scale: bool = True
) -> np.ndarray:
    """Share of held-out images that a linear SVM labels rightly, for every split, `[n_splits]`."""
    splits = ShuffleSplit(n_splits, test_size=TEST_SHARE, random_state=0)
    found = []
    for fitted, scored in splits.split(features):
        model = classifier(scale).fit(features[fitted], labels[fitted])
        found.append(model.score(features[scored], labels[scored]))
    return np.array(found)


def reducer(training_features: np.ndarray, n_columns: int = N_COLUMNS) -> Callable:
    """A map of features to their first principal components, fitted without labels."""
    n = min(n_columns, *training_features.shape)
    pipeline = make_pipeline(StandardScaler(), PCA(n, svd_solver="covariance_eigh"))
    return pipeline.fit(training_features).transform


def figures(
    models: Models, name: str, n_components: int, n_splits: int, sizes: dict[str, Any]
) -> dict[str, Any]:
    """Everything that is recorded of one model."""
    single = name == "vae" or n_components == 1
    build = separate if name == "ensemble" else mixture
    vae, trainings = build(models, 1 if single else n_components, sizes)
    nll = _image_tests.nll(models, "mixture_S1" if single else f"{name}_S{n_components}", vae)
    start_random(models.seed, f"features/{name}/{n_components}")
    n_draws = 2 * n_components if name == "vae" else 0
    x = models.test_images
    columns = features(vae, x, n_draws)
    (training_images,) = binarise_once(models.data.train_dataloader().pixels)
    training_columns = features(vae, training_images, n_draws)
    reduced = reducer(training_columns)(columns)
    labels = models.data.test_labels[: len(x)].numpy()
    scores = {
        "accuracy": accuracies(columns, labels, n_splits),
        "accuracy_reduced": accuracies(reduced, labels, n_splits, scale=False),
    }
    trained_on_training = classifier().fit(training_columns, models.data.train_labels.numpy())
    jsd = torch.cat([vae.jsd(batch.to(chosen_device())).cpu() for batch in x.split(100)])
    return {
        **{key: round(float(found.mean()), 5) for key, found in scores.items()},
        **{f"{key}_sd_over_splits": round(float(found.std()), 5) for key, found in scores.items()},
        "accuracy_train_to_test": round(trained_on_training.score(columns, labels), 5),
        "n_features": columns.shape[1],
        "n_features_reduced": reduced.shape[1],
        "n_splits": n_splits,
        "jsd": round(float(jsd.mean()), 4),
        **nll,
        "trainings": trainings,
    }


def run_on_mixtures(
    doc: str,
    result: Path,
    argv: Sequence[str] | None,
    jobs_of: Callable[[Models, str, dict[str, Any], bool], Jobs],
    settings_of: Callable[[Models], dict[str, Any]],
) -> None:
    """Run another experiment's jobs on the mixtures whose checkpoints are this one's.

    Parameters
    ----------
    doc, result, argv
        Of that experiment.
    jobs_of
        From models, the name of their data set, sizes of their parts and whether it is a smoke run
        to jobs.
    settings_of
        What the figures depend on besides data set, model and seed.
    """
    arguments = parser(doc, result)
    arguments.add_argument("--datasets", nargs="+", choices=DATASETS, default=["mnist"])
    options = arguments.parse_args(argv)
    beside = options.result.with_name(RESULT.name)
    options.checkpoints = options.checkpoints or checkpoints_beside(beside, options.smoke)
    sizes = SMOKE_SIZES if options.smoke else {}
    with until_deadline():
        for dataset in options.datasets:
            models = Models(dataset, options, scheme_of(options), Deadline(options.minutes))
            jobs = jobs_of(models, dataset, sizes, options.smoke)
            _common.run_missing(options, jobs, chosen_device(), settings_of(models))


def main(argv: Sequence[str] | None = None) -> None:
    """Train and score what is not yet in the JSON."""
    arguments = parser(__doc__, RESULT)
    arguments.add_argument("--datasets", nargs="+", choices=DATASETS, default=DATASETS)
    arguments.add_argument("--splits", type=int, default=10, help="random splits for the SVM")
    options = arguments.parse_args(argv)
    scheme, deadline = scheme_of(options), Deadline(options.minutes)
    with until_deadline():
        for dataset in options.datasets:
            models = Models(dataset, options, scheme, deadline)
            jobs = {
                f"{dataset}/{name}/S={s}": partial(
                    figures, models, name, s, options.splits, SMOKE_SIZES if options.smoke else {}
                )
                for s in COMPONENTS
                for name in MODELS
            }
            settings = models.settings | {"splits": options.splits}
            _common.run_missing(options, jobs, chosen_device(), settings)


if __name__ == "__main__":
    main()
