"""CORTEX in its smoke form: rows, resuming, and what must hold between rows."""

import json
import math

import numpy as np
import pytest

from scmixvi.experiments import cortex
from scmixvi.experiments._cells import training as _singlecell


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    path = tmp_path_factory.mktemp("cortex") / "cortex.json"
    cortex.main(["--smoke", "--seed", "2", "--result", str(path)])
    return path


def runs(path):
    return json.loads(path.read_text())["runs"]


def test_every_row_has_its_figures(result):
    found = runs(result)
    names = ("mixture/S=1", "mixture/S=2", "stock", "ensemble/S=2")
    assert set(found) == {f"{name}/seed=2" for name in names}
    for name in names:
        run = found[f"{name}/seed=2"]
        size = 2 if name.endswith("2") else 1
        expected = {"params": 20 * size, "mean": 10, "moments": 20, "pca": 20}
        if size == 1:
            expected |= {"draws/S=1": 20, "draws/S=2": 40}
        assert {k: v["n_features"] for k, v in run["scores"].items()} == expected
        assert all(0 <= v["svm"] <= 1 for v in run["scores"].values())
        assert run["gap"] > 0
        assert run["jsd"] <= math.log(size) + 1e-6


def test_for_one_component_pooling_changes_nothing(result):
    scores = runs(result)["mixture/S=1/seed=2"]["scores"]
    assert scores["moments"] == scores["params"]
    assert scores["pca"]["svm_train_to_test"] == pytest.approx(
        scores["params"]["svm_train_to_test"], abs=0.02
    )
    assert scores["pca"]["ari"] == pytest.approx(scores["params"]["ari"], abs=0.02)
    assert scores["draws/S=1"]["svm"] != scores["params"]["svm"]


def test_nothing_is_run_or_trained_twice(result, monkeypatch, capsys):
    capsys.readouterr()
    cortex.main(["--smoke", "--seed", "2", "--result", str(result)])
    assert capsys.readouterr().out == ""
    content = json.loads(result.read_text())
    before = content["runs"].pop("ensemble/S=2/seed=2")
    result.write_text(json.dumps(content))
    for name in ("train_mixture", "train_member", "train_stock"):
        monkeypatch.setattr(_singlecell, name, lambda *a: pytest.fail("trained again"))
    cortex.main(["--smoke", "--seed", "2", "--result", str(result)])
    after = runs(result)["ensemble/S=2/seed=2"]
    assert {k: v for k, v in after.items() if k != "seconds"} == {
        k: v for k, v in before.items() if k != "seconds"
    }


def test_members_of_an_ensemble_start_from_seeds_of_their_own():
    seeds = {_singlecell.member_seed(seed, member) for seed in range(5) for member in range(2, 6)}
    assert len(seeds) == 20


def test_drawn_features_are_a_cell_s_own_draws_new_in_every_repeat(monkeypatch):
    asked = {}

    def repeated_scores(test, *_):
        asked["test"] = test(), test()
        return {}

    def train_to_test(train, _, test, *__):
        asked["train"] = train, test
        return 0.0

    monkeypatch.setattr(cortex, "repeated_scores", repeated_scores)
    monkeypatch.setattr(cortex, "train_to_test", train_to_test)
    mean, variance = 9.0 * np.arange(21).reshape(7, 3), 4.0 + np.arange(21).reshape(7, 3)
    split = _singlecell.Split(np.arange(4), np.arange(0), np.array([6, 5]))
    scores = cortex.Scorer(np.arange(7), split, cortex.SMOKE, 0).drawn(mean, variance, 4000)
    assert scores["n_features"] == 4000 * 3
    for rows, features in (([6, 5], asked["test"][0]), (range(4), asked["train"][0])):
        draws = features.reshape(len(rows), 4000, 3)
        np.testing.assert_allclose(draws.mean(1), mean[rows], atol=0.3)
        np.testing.assert_allclose(draws.var(1), variance[rows], rtol=0.1)
    every_time = [*asked["test"], asked["train"][1]]
    assert len({features.tobytes() for features in every_time}) == 3
