"""What a classifier is fitted and scored on, and how clusters are compared with labels."""

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from scmixvi.experiments import latents
from scmixvi.experiments._cells import scores as _scores


class Recorder:
    """A classifier that writes down which rows it is fitted on, and which it is asked about."""

    def __init__(self, seen):
        self.seen = seen

    def fit(self, x, labels):
        np.testing.assert_array_equal(x[:, 0], labels)
        self.fitted = x[:, 0].tolist()
        return self

    def score(self, x, labels):
        np.testing.assert_array_equal(x[:, 0], labels)
        self.seen.append((self.fitted, x[:, 0].tolist()))
        return 0.0


def of_cells(rows):
    rng = np.random.default_rng(0)
    _scores.repeated_scores(lambda: rows, rows[:, 0], 30, 3, rng, clustered=rows[:, :1])


def of_images(rows):
    latents.accuracies(rows, rows[:, 0], 3)


@pytest.mark.parametrize(("module", "run"), [(_scores, of_cells), (latents, of_images)])
def test_three_quarters_are_fitted_and_only_the_others_scored_anew_in_every_repeat(
    module, run, monkeypatch
):
    seen = []
    monkeypatch.setattr(module, "classifier", lambda *_: Recorder(seen))
    run(np.repeat(np.arange(40.0)[:, None], 2, axis=1))
    assert [(len(fitted), len(scored)) for fitted, scored in seen] == [(30, 10)] * 3
    assert all(sorted(fitted + scored) == list(range(40)) for fitted, scored in seen)
    assert len({tuple(sorted(scored)) for _, scored in seen}) == 3


def test_mutual_information_is_normalised_by_the_geometric_mean_of_the_entropies():
    """Two clusters, of 9 cells and of 1; two labels, of 5 cells each."""
    x, labels = np.array([[0.0]] * 9 + [[100.0]]), np.repeat([0, 1], 5)
    found = _scores.repeated_scores(lambda: x, labels, 8, 1, np.random.default_rng(0))
    entropy = -(0.9 * np.log(0.9) + 0.1 * np.log(0.1))
    information = mutual_info_score(labels, [0] * 9 + [1])
    assert found["nmi"] == pytest.approx(information / np.sqrt(entropy * np.log(2)))
