"""CORTEX (Tables 6, 9, 10): scVI, ensembles and mixtures of S = 1 to 5 encoders.

The protocol is the released code's wherever the paper's text leaves something open or says
something else: the split is 2400 / 200 / 405 cells; batches of 512; no KL warm-up; no batch norm;
features are all component means and variances, 2 S D of them, and the S = 1 baseline gets 2 S
draws from q instead; a repeat fits the classifier on 305 of the test cells and scores the other
100. The text alone decides on the normalisation of NMI (geometric).

Rows, for every seed (which sets both the split and the initialisation):

mixture/S=1 to 5
    trained jointly by MISELBO; S = 1 is scVI, and also the "VAE (scVI)" baseline of the tables;
ensemble/S=2 to 5
    the encoder of S = 1 and S - 1 further ones, trained separately against the decoder of the
    S = 1 model, which stays fixed; S = 5 contains the members of S = 2 to 4;
stock
    scvi.model.SCVI with every default (batch norm, KL warm-up, batches of 128, its own number of
    epochs), trained on the same cells.

Figures: epochs, held-out bounds (:func:`scmixvi.experiments._cells.training.bounds`), and scores
(:func:`scmixvi.experiments._cells.scores.repeated_scores`, and the accuracy from training to test
cells, `svm_train_to_test`) of these representations:

params
    the paper's, 2 S D features;
draws/S=1 to 5
    for S = 1 models only: 2 S draws from q, 2 S D features;
mean, moments
    the mixture's mean, D features; its mean and variance, 2 D features, whatever S;
pca
    `params` projected on 2 D principal components of the training cells: of the standardised
    features for the classifier, which does not rescale again, and of the plain ones for k-means.
    For S = 1 both are rotations, and the scores those of `params` but for the cells that the
    scaling is fitted on.

A repeat varies the 305 cells, the start of k-means and the draws; the model stays the same.

    python -m scmixvi.experiments.cortex --seed 0
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anndata as ad
import numpy as np

import scmixvi
from scmixvi.experiments._cells import training as singlecell
from scmixvi.experiments._cells.scores import principal_components, repeated_scores, train_to_test
from scmixvi.experiments._cells.trained_models import TrainedModels
from scmixvi.experiments._cells.training import Split, Training
from scmixvi.experiments._common import parse, run_missing, trained

RESULT = Path(__file__).parent / "results" / "cortex.json"


@dataclass(frozen=True)
class Protocol:
    """Sizes of the experiment."""

    components: tuple[int, ...] = (1, 2, 3, 4, 5)
    n_train: int = 2400
    n_validation: int = 200
    n_fit: int = 305
    n_repeats: int = 200
    n_draws: int = 1000
    training: Training = Training()
    stock_epochs: int | None = None


PAPER = Protocol()
SMOKE = Protocol((1, 2), 120, 30, 40, 3, 12, Training(64, 3, 2), 2)


def load(smoke: bool) -> tuple[ad.AnnData, np.ndarray]:
    """Counts and labels; a corner of the bundled PBMC for a smoke run."""
    if not smoke:
        adata = scmixvi.datasets.cortex()
        return adata, adata.obs["cell_type"].astype(str).to_numpy()
    adata = scmixvi.datasets.pbmc68k()
    counts = np.asarray(adata.X.sum(0)).ravel()
    adata = adata[:210, np.argsort(-counts)[:40]].copy()
    return adata, adata.obs["bulk_labels"].astype(str).to_numpy()


class Scorer:
    """Scores of all representations of a model on the test cells."""

    def __init__(self, labels: np.ndarray, split: Split, protocol: Protocol, seed: int) -> None:
        self.labels, self.split, self.protocol, self.seed = labels, split, protocol, seed

    def __call__(self, model: scmixvi.MixtureSCVI) -> dict[str, dict[str, float]]:
        """Name of a representation to its scores."""
        params = model.get_latent_representation(representation="params")
        mean, variance = model.get_latent_representation(return_dist=True)
        moments = np.concatenate([mean, variance], axis=1)
        train, test = self.split.train, self.split.test
        result = {
            "params": self.fixed(params[train], params[test]),
            "mean": self.fixed(mean[train], mean[test]),
            "moments": self.fixed(moments[train], moments[test]),
            "pca": self.projected(params[train], params[test], moments.shape[1]),
        }
        if model.module.n_components == 1:
            for size in self.protocol.components:
                result[f"draws/S={size}"] = self.drawn(mean, variance, 2 * size)
        return result

    def fixed(self, train: np.ndarray, test: np.ndarray) -> dict:
        """Scores of features that stay the same in every repeat."""
        return self._scores(lambda: train, lambda: test)

    def projected(self, train: np.ndarray, test: np.ndarray, n: int) -> dict:
        """Scores of n principal components."""
        first, second = principal_components(train, test, n, scale=True)
        _, plain = principal_components(train, test, n, scale=False)
        return self._scores(lambda: first, lambda: second, scale=False, clustered=plain)

    def drawn(self, mean: np.ndarray, variance: np.ndarray, n_draws: int) -> dict:
        """Scores of `n_draws` draws from q side by side, new ones in every repeat."""
        rng = np.random.default_rng(self.seed)

        def draws(rows: np.ndarray) -> np.ndarray:
            noise = rng.standard_normal((n_draws, len(rows), mean.shape[1]))
            z = mean[rows] + np.sqrt(variance[rows]) * noise
            return np.moveaxis(z, 0, 1).reshape(len(rows), -1)

        return self._scores(partial(draws, self.split.train), partial(draws, self.split.test))

    def _scores(
        self,
        train: Callable[[], np.ndarray],
        test: Callable[[], np.ndarray],
        scale: bool = True,
        clustered: np.ndarray | None = None,
    ) -> dict[str, float]:
        on_train, on_test = self.labels[self.split.train], self.labels[self.split.test]
        rng = np.random.default_rng(self.seed)
        scores = repeated_scores(
            test, on_test, self.protocol.n_fit, self.protocol.n_repeats, rng, scale, clustered
        )
        x = train()
        scores["svm_train_to_test"] = train_to_test(x, on_train, test(), on_test, scale)
        return {name: round(v, 5) for name, v in scores.items()} | {"n_features": x.shape[1]}


def main(argv: list[str] | None = None, protocol: Protocol | None = None) -> None:
    """Run what is not yet in the JSON for this seed."""
    arguments = parse(__doc__, RESULT, argv)
    protocol = protocol or (SMOKE if arguments.smoke else PAPER)
    singlecell.quiet()
    adata, labels = load(arguments.smoke)
    scmixvi.MixtureSCVI.setup_anndata(adata)
    split = singlecell.random_split(
        adata.n_obs, protocol.n_train, protocol.n_validation, arguments.seed
    )
    scorer = Scorer(labels, split, protocol, arguments.seed)
    models = TrainedModels(arguments, adata, split, protocol.training)

    def figures(model: scmixvi.MixtureSCVI, n_epochs: int) -> dict:
        found = singlecell.bounds(model, split.test, protocol.n_draws)
        return {"n_epochs": n_epochs, **found, "scores": scorer(model)}

    def mixture_job(size: int) -> dict:
        return figures(*models.mixture(size))

    def ensemble_job(size: int) -> dict:
        return figures(*models.ensemble(size))

    def stock_job() -> dict:
        train = partial(singlecell.train_stock, adata, split, protocol.stock_epochs)
        weights = trained(arguments, "stock", train)
        return figures(singlecell.stock_model(adata, weights["state"]), weights["n_epochs"])

    jobs = {f"mixture/S={size}": partial(mixture_job, size) for size in protocol.components}
    several = [size for size in protocol.components if size > 1]
    jobs |= {"stock": stock_job}
    jobs |= {f"ensemble/S={size}": partial(ensemble_job, size) for size in several}
    run_missing(arguments, jobs)


if __name__ == "__main__":
    main()
