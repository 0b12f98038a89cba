"""What the pages say of the experiments with cells is so."""

import numpy as np
from recorded import EXPERIMENTS, differences

from benchmarks import _report_bounds as of_bounds
from scmixvi.experiments._common import by_seed
from scmixvi.experiments._reports import planted as _report_planted
from scmixvi.records import read


def test_what_is_said_of_likelihoods_on_cortex_is_so():
    over_one, over_ensemble = {}, {}
    for size in (2, 3, 4, 5):
        names = f"mixture/S={size}", f"ensemble/S={size}", "mixture/S=1"
        gain, half = over_one[size] = differences(
            "cortex.json", names[0], names[2], "log_likelihood"
        )
        assert gain > half
        over_ensemble[size] = differences("cortex.json", names[0], names[1], "log_likelihood")
        assert abs(over_ensemble[size][0]) < over_ensemble[size][1]
        assert abs(differences("cortex.json", names[0], names[1], "jsd")[0]) < 0.02
        wider, half = differences("cortex.json", names[0], names[2], "gap")
        assert 1.4 <= round(wider, 1) <= 2.3
        assert wider > half
    assert 2.5 < over_one[2][0] < 3.5
    assert all(5 < over_one[size][0] < 6 for size in (3, 4, 5))
    for key in ("log_likelihood", "miselbo"):
        fifth, half = differences("cortex.json", "mixture/S=5", "mixture/S=4", key)
        assert abs(fifth) < half


def test_what_is_said_of_scores_on_cortex_is_so():
    def scores(first, second, representation, score):
        return differences("cortex.json", first, second, "scores", representation, score)

    beyond, fitted_on_all, reached = [], {}, []
    for size in (2, 3, 4, 5):
        mixture, ensemble, one = f"mixture/S={size}", f"ensemble/S={size}", "mixture/S=1"
        gain, half = scores(mixture, one, "params", "svm")
        assert 0.0015 < gain < 0.0075
        reached.append(gain + half)
        beyond += [size] * (gain > half)
        fitted_on_all[size] = scores(mixture, one, "params", "svm_train_to_test")
        assert scores(mixture, ensemble, "params", "svm")[0] < 0
        for score in ("ari", "nmi"):
            difference, half = scores(mixture, one, "params", score)
            assert abs(difference) < half
        worse, half = scores(mixture, one, "moments", "svm_train_to_test")
        assert -0.045 < worse < -0.025
        assert -worse > half
        assert scores(mixture, one, "mean", "svm_train_to_test")[0] > -0.005
    assert beyond == [3]
    assert round(max(reached), 3) == 0.021
    gains = [gain for gain, _ in fitted_on_all.values()]
    assert (round(min(gains), 3), round(max(gains), 2)) == (0.007, 0.01)
    assert [s for s, (gain, half) in fitted_on_all.items() if gain > half] == [2, 3, 5]
    runs = read(EXPERIMENTS / "cortex.json", {})["runs"]
    mixtures = [run for name, run in runs.items() if name.startswith("mixture/")]
    assert len(mixtures) == 25
    assert {run["n_epochs"] for run in mixtures} == {1000}
    one = by_seed(runs, "mixture/S=1").values()
    means = [sum(run["scores"]["params"][k] for run in one) / 5 for k in ("svm", "ari", "nmi")]
    assert [round(mean, 3) for mean in means] == [0.922, 0.673, 0.723]


def test_what_is_said_of_monotone_likelihoods_is_so():
    def over_one(data, size, estimator):
        names = f"{data}/S={size}", f"{data}/S=1"
        return differences("monotone.json", *names, estimator)

    for size in (2, 3, 4, 5):
        gain, half = over_one("sc_mixology", size, "log_likelihood_eq17")
        assert abs(gain) < half
        gain, half = differences(
            "cortex.json", f"mixture/S={size}", "mixture/S=1", "log_likelihood_eq17"
        )
        assert abs(gain) < half
        gain, half = over_one("pbmc68k", size, "log_likelihood")
        assert abs(gain) < half
    for size in (4, 5):
        gain, half = over_one("pbmc68k", size, "log_likelihood_eq17")
        assert -2 < gain < -1.5
        assert -gain > half
    gain, half = over_one("sc_mixology", 5, "log_likelihood")
    assert 3 < gain - half < 4 < gain < gain + half < 6
    images = read(EXPERIMENTS / "monotone_images.json", {})["runs"]
    rises = []
    for seed in (0, 1, 2):
        by_size = [images[f"mnist/S={size}/seed={seed}"] for size in range(1, 6)]
        nlls, gaps = ([run[key] for run in by_size] for key in ("nll", "gap"))
        assert nlls[4] < nlls[0]
        rises.append([size for size in range(1, 5) if nlls[size] > nlls[size - 1]])
        assert gaps[4] < gaps[0]
    assert len(images) == 15
    assert rises == [[4], [3], [3]]
    for size, said in ((5, (1.0, 0.6)), (2, (0.6, 0.5))):
        names = f"mnist/S={size}", "mnist/S=1"
        gain, half = differences("monotone_images.json", *names, "nll", n_seeds=3)
        assert (round(-gain, 1), round(half, 1)) == said


def integration(data, first, second, job, *keys):
    name = f"{data}/{{}}/{job}"
    return differences("integration.json", name.format(first), name.format(second), *keys)


def test_what_is_said_of_integration_scores_is_so():
    for data in of_bounds.DATASETS:
        gain, half = integration(data, "mixture", "scvi", "scores", "Bio conservation")
        assert abs(gain) < half
        over_pca, half = integration(data, "mixture", "pca", "scores", "Bio conservation")
        assert (over_pca < -half) if data == "pbmc68k" else (over_pca > half)
    for other in ("scvi", "ensemble"):
        gain, half = integration("sc_mixology", "mixture", other, "scores", "Batch correction")
        assert gain > half
        if other == "scvi":
            assert (round(gain, 2), round(half, 2)) == (0.04, 0.02)
        gain, half = integration("sc_mixology", "mixture", other, "scores", "Total")
        assert gain > half
    for first, second, name, said in (
        ("warmup", "scvi", "Batch correction", (0.036, 0.011)),
        ("one", "warmup", "Batch correction", (-0.001, 0.004)),
        ("mixture", "one", "Batch correction", (0.008, 0.016)),
        ("warmup", "scvi", "Bio conservation", (-0.014, 0.008)),
        ("mixture", "one", "Total", (0.010, 0.007)),
    ):
        found = integration("sc_mixology", first, second, "scores", name)
        assert tuple(round(value, 3) for value in found) == said


def test_what_is_said_of_other_seeds_is_so():
    runs = read(EXPERIMENTS / "integration.json", {})["runs"]

    def agreement(data, method, key):
        found = [run[key] for name, run in runs.items() if f"{data}/{method}/against=" in name]
        assert len(found) == 10
        return sum(found) / len(found)

    for data in of_bounds.DATASETS:
        clusters = [agreement(data, method, "ari") for method in ("mixture", "scvi")]
        assert abs(clusters[0] - clusters[1]) < 0.06
        ranks = {m: agreement(data, m, "de_spearman") for m in ("scvi", "mixture", "ensemble")}
        assert 0 < ranks["mixture"] - ranks["scvi"] < ranks["ensemble"] - ranks["scvi"]


def test_what_is_said_of_null_comparisons_and_ambiguous_cells_is_so():
    runs = read(EXPERIMENTS / "integration.json", {})["runs"]
    null = [run for name, run in runs.items() if "/null/" in name]
    assert len(null) == 2 * 5 * len(of_bounds.DATASETS)
    calls = [share for run in null for at in ("0.05", "0.1", "0.2") for share in run[at]]
    assert max(calls) < 5e-5
    seen = [p for run in null for name in ("median", "p95", "largest") for p in run[name]]
    assert 0.25 < min(seen) < max(seen) < 0.65
    weighted = [run["0.05"] for name, run in runs.items() if "/null, importance/" in name]
    shares = [share for run in weighted for share in run]
    assert len(weighted) == 5 * len(of_bounds.DATASETS)
    counts = [len(shares), sum(s > 0 for s in shares), sum(s > 0.5 for s in shares)]
    assert counts == [75, 22, 8]
    by_cell = {n: run for n, run in runs.items() if "/null, importance_by_cell/" in n}
    assert len(by_cell) == 5 * len(of_bounds.DATASETS)
    for name, run in by_cell.items():
        assert max(run["0.05"] + run["0.1"] + run["0.2"]) == 0
        uniform = runs[name.replace("null, importance_by_cell", "null")]
        for key in ("median", "p95", "largest"):
            np.testing.assert_allclose(run[key], uniform[key], atol=0.07)
    said_of_equal_depth = {"cortex": [0.6], "sc_mixology": [0.8], "pbmc68k": [0.8, 0.9]}
    for data in of_bounds.DATASETS:
        auroc = {
            method: [run for name, run in runs.items() if f"{data}/{method}/ambiguous/" in name]
            for method in ("scvi", "mixture")
        }
        assert max(run["thinned"]["JSD"] for run in auroc["mixture"]) < 0.2
        jsd = [
            sum(run[kind]["JSD"] for run in auroc["mixture"]) / 5
            for kind in ("doublet", "doublet, thinned")
        ]
        assert jsd[0] > 0.5 > jsd[1]
        for found in auroc.values():
            assert min(run["thinned"]["entropy"] for run in found) > 0.85
        gain, half = integration(data, "mixture", "scvi", "ambiguous", "doublet", "variance")
        assert gain > half
        for run in auroc["mixture"]:
            assert run["doublet"]["variance"] < run["doublet"]["total count"]
        for score in ("entropy", "variance"):
            gain, half = integration(
                data, "mixture", "scvi", "ambiguous", "doublet, thinned", score
            )
            assert abs(gain) < 0.05
            assert abs(gain) + half < 0.125
        for found in auroc.values():
            score = np.mean([run["doublet, thinned"]["entropy"] for run in found])
            assert round(score, 1) in said_of_equal_depth[data]
            depth = np.mean([run["doublet, thinned"]["total count"] for run in found])
            assert abs(depth - 0.5) < 0.05
            for run in found:
                assert run["doublet"]["entropy"] < run["doublet"]["total count"]


def test_what_is_said_of_planted_changes_is_so():
    runs = read(EXPERIMENTS / "planted.json", {})["runs"]
    careful = [job for job in _report_planted.COMPARED if job != "mixture/importance"]

    def of(data, *jobs):
        found = [by_seed(runs, f"{data}/{job}").values() for job in jobs]
        assert {len(seeds) for seeds in found} == {5}
        return [run for seeds in found for run in seeds]

    def extremes(data, level, figure, *jobs):
        found = [run[level][figure] for run in of(data, *(jobs or careful))]
        return round(min(found), 2), round(max(found), 2)

    def gained(data, job, base, *keys, digits=2, scale=1):
        names = [f"{data}/{name}" for name in (job, base)]
        found = differences("planted.json", *names, *keys)
        return tuple(round(scale * n, digits) for n in found)

    for data, n_planted in (("sc_mixology", 116), ("cortex", 119), ("pbmc68k", 30)):
        assert {run["n_planted"] for run in of(data, *careful)} == {n_planted}
        assert extremes(data, "0.05", "false") == (0, 0)
    assert min(run["auroc"] for run in of("sc_mixology", *careful)) > 0.99
    assert extremes("sc_mixology", "0.05", "recall")[1] <= 0.17
    assert extremes("sc_mixology", "0.2", "recall") == (0.86, 1.0)
    assert extremes("sc_mixology", "0.2", "false") == (0.02, 0.22)
    assert extremes("cortex", "0.05", "recall") == (0, 0.01)
    assert extremes("cortex", "0.2", "recall") == (0.34, 0.69)
    assert extremes("cortex", "0.2", "false") == (0, 0.05)
    assert extremes("pbmc68k", "0.05", "recall") == extremes("pbmc68k", "0.2", "recall") == (0, 0)
    assert extremes("pbmc68k", "0.2", "false") == (0, 0)

    plain, by_cell = "mixture/uniform", "mixture/importance_by_cell"
    said = {
        (plain, "mixture/refined"): [(0.07, 0.03), (0.04, 0.03), (0.03, 0.01)],
        (plain, by_cell): [(0.05, 0.03), (0.03, 0.02), (0.02, 0.01)],
        ("scvi/uniform", "scvi/refined"): [(0.07, 0.05), (0.03, 0.04), (0.03, 0.01)],
    }
    names = ("sc_mixology", "cortex", "pbmc68k")
    for (base, job), expected in said.items():
        assert [gained(data, job, base, "fold_change") for data in names] == expected
    for data in names:
        pairs = [
            ("mixture/refined_by_cell", "mixture/refined"),
            ("mixture/uniform", "scvi/uniform"),
            ("mixture/refined", "scvi/refined"),
        ]
        for pair in pairs:
            gain, half = gained(data, *pair, "fold_change", digits=4)
            assert abs(gain) < half
    changes = [
        sum(run["fold_change"] for run in of("sc_mixology", job)) / 5
        for job in ("mixture/refined", plain)
    ]
    assert [round(mean, 2) for mean in changes] == [0.81, 0.74]

    def points(data, *keys):
        return gained(data, "mixture/refined", plain, *keys, digits=1, scale=100)

    assert points("sc_mixology", "0.05", "recall") == (4.7, 3.4)
    assert points("sc_mixology", "0.2", "false") == (6.5, 4.9)
    assert points("cortex", "0.2", "recall") == (8.2, 6.7)
    gain, half = points("cortex", "0.2", "false")
    assert abs(gain) < half
    for data, wrong in zip(names, (2, 2, 3), strict=True):
        pooled = of(data, "mixture/importance")
        assert sum(run["0.05"]["false"] > 0.5 for run in pooled) == wrong
    both = [extremes(data, "0.2", "false", "mixture/importance") for data in names[:2]]
    assert (min(low for low, _ in both), max(high for _, high in both)) == (0.31, 0.9)
