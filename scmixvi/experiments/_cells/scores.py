"""How well cell types can be read from a representation: a linear classifier and k-means."""

from collections.abc import Callable

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC


def classifier(scale: bool = True) -> object:
    """The paper's: StandardScaler, then LinearSVC(C = 0.025, tol = 1e-4)."""
    steps = [StandardScaler()] if scale else []
    return make_pipeline(*steps, LinearSVC(C=0.025, tol=1e-4, random_state=0))


def repeated_scores(
    features: Callable[[], np.ndarray],
    labels: np.ndarray,
    n_fit: int,
    n_repeats: int,
    rng: np.random.Generator,
    scale: bool = True,
    clustered: np.ndarray | None = None,
) -> dict[str, float]:
    """Scores of the test cells, averaged over repeats.

    Parameters
    ----------
    features
        Called once a repeat; `(n, F)`. Draws differ between calls, parameters do not.
    labels
        `(n,)`.
    n_fit
        Test cells on which the classifier is fitted in a repeat, drawn at random; the others are
        scored.
    n_repeats
        A repeat varies these cells, the start of k-means and, where features are draws, the draws.
    rng
        Source of the splits and starts.
    scale
        Whether the classifier standardises its features.
    clustered
        What k-means sees where it is not what the classifier sees, `(n, F)`.

    Returns
    -------
    svm: accuracy, 0 to 1. ari, nmi: of k-means with as many clusters as labels (10 starts); NMI
    is normalised by the geometric mean of the entropies, as in the paper.
    """
    found = []
    for _ in range(n_repeats):
        x, order = features(), rng.permutation(len(labels))
        fit, score = order[:n_fit], order[n_fit:]
        model = classifier(scale).fit(x[fit], labels[fit])
        start = int(rng.integers(2**31))
        clusters = KMeans(len(np.unique(labels)), n_init=10, random_state=start).fit_predict(
            x if clustered is None else clustered
        )
        found.append(
            {
                "svm": model.score(x[score], labels[score]),
                "ari": adjusted_rand_score(labels, clusters),
                "nmi": normalized_mutual_info_score(labels, clusters, average_method="geometric"),
            }
        )
    return {name: float(np.mean([f[name] for f in found])) for name in found[0]}


def train_to_test(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    scale: bool = True,
) -> float:
    """Accuracy on all test cells of a classifier fitted on the training cells."""
    return float(classifier(scale).fit(train, train_labels).score(test, test_labels))


def principal_components(
    train: np.ndarray, test: np.ndarray, n: int, scale: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Project both on n principal components of `train`, of its standardised features if `scale`.

    With no more than n features this is a rotation, which changes neither a linear classifier nor
    k-means.
    """
    steps = [StandardScaler()] if scale else []
    pca = PCA(min(n, *train.shape), svd_solver="full")
    pipeline = make_pipeline(*steps, pca).fit(train)
    return pipeline.transform(train), pipeline.transform(test)
