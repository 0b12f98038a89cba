"""Tables of the readme and the documentation are those of the JSON."""

from functools import reduce
from operator import getitem
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from benchmarks import RESULTS, figures, report
from benchmarks import _report_bounds as of_bounds
from benchmarks import _report_times as of_times
from scmixvi import experiments
from scmixvi.experiments import _paper_images, density2d
from scmixvi.experiments import report as experiment_report
from scmixvi.experiments._common import by_seed, interval, paired
from scmixvi.experiments._paper_images import TABLE_8
from scmixvi.records import read

EXPERIMENTS = Path(experiments.__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("name", report.TABLES)
def test_tables_are_current(name):
    table = report.TABLES[name]()
    assert table.count("\n") > 3
    assert (RESULTS / f"{name}.md").read_text() == table, "run python -m benchmarks.report"


def test_speed_tables_take_what_has_been_measured(monkeypatch):
    """One part alone, or other numbers of components, leave cells empty."""
    row = {"median": 1.0, "q25": 1.0, "q75": 1.0}
    trained = [
        {
            "model": model,
            "seconds_an_epoch": row,
            "ratio_to_SCVI": row,
            "cells_a_second": 1,
            "shares": {"data": 1.0},
        }
        for model in ("SCVI", "S = 4")
    ]
    content = {
        "memory alone": {"memory": {"SCVI": {"resident_mb": 1.0}}},
        "four": {"training": trained, "max_steps_an_epoch": 7},
    }
    monkeypatch.setattr(of_times, "read", lambda *_: content)
    assert "| four, scaled up from 7 steps | 1.00 |  |  | 1.00 |  |" in of_times.epoch_ratios()
    assert "memory alone" not in of_times.epochs() + of_times.epoch_parts() + of_times.queries()
    assert of_times.epochs().count("four, scaled up from 7 steps") == 2


def test_the_readme_is_current():
    text = report.README.read_text()
    assert "<!-- demo -->" in text
    assert report.with_tables(text) == text, "run python -m benchmarks.report"


def test_what_the_readme_says_of_the_gains_is_so():
    runs = of_bounds._runs()

    def gains(batch_norm):
        return [
            gain
            for data in of_bounds.DATASETS
            for gain in of_bounds.gains_of(data, batch_norm, "log_likelihood")
        ]

    assert sum(gain > 0 for gain in gains("none")) == 9
    assert sum(gain > 0 for gain in gains("encoder")) == 9
    assert sum(gain > 0 for gain in gains("both")) == 8
    without = [
        runs[f"{data}/bn=none/S=4/seed={seed}"]["log_likelihood"]
        - runs[f"{data}/bn=both/S=4/seed={seed}"]["log_likelihood"]
        for data in of_bounds.DATASETS
        for seed in of_bounds.SEEDS
    ]
    assert round(min(without), 1) == 0.6
    assert round(max(without), 1) == 2.7


def test_the_figure_of_gains_shows_every_seed():
    fig = figures.gains_figure()
    for ax, batch_norm in zip(fig.axes, figures.SETTINGS, strict=True):
        shown = [list(line.get_xdata()) for line in ax.lines[: len(of_bounds.DATASETS)]]
        expected = [of_bounds.gains_of(d, batch_norm, "log_likelihood") for d in of_bounds.DATASETS]
        assert shown == expected
    assert "200 of the model's own draws" in fig.get_supxlabel()
    plt.close(fig)


def test_tables_of_experiments_are_current(tmp_path, monkeypatch):
    monkeypatch.setattr(plt.Figure, "savefig", lambda *_, **__: None)
    experiment_report.write(EXPERIMENTS, tmp_path)
    names = [path.name for path in tmp_path.glob("*.md")]
    assert sorted(names) == sorted(path.name for path in EXPERIMENTS.glob("*.md"))
    for name in names:
        written, current = ((folder / name).read_text() for folder in (tmp_path, EXPERIMENTS))
        assert current == written, "run python -m scmixvi.experiments.report"


def test_what_the_pages_quote_of_the_papers_images_is_there():
    guide = (DOCS / "user_guide" / "choosing.md").read_text()
    table_7 = _paper_images.TABLE_7
    for figure in (table_7["iwae_units"][1], table_7["iwae_layers"][1], table_7["mixture"][1]):
        assert figure in guide
    for divergences in _paper_images.TABLE_5.values():
        assert divergences[3] in guide
    page = " ".join((DOCS / "experiments_images.md").read_text().split())
    lowest = min(mean for row in _paper_images.TABLE_1.values() for mean, _ in row)
    assert f"The lowest figure that the paper has is {lowest:.2f} nats" in page
    listed = min(float(figure.split()[0]) for _, figure in _paper_images.TABLE_3)
    assert f"the lowest of a VAE in the last table is {listed:.2f}" in page


def test_what_the_pages_say_of_gaps_and_scores_is_so():
    """No data set's mean gap shrinks by more than a nat; no score differs by three errors."""
    runs = of_bounds._runs()

    def gap(name):
        return runs[name]["log_likelihood"] - runs[name]["miselbo"]

    for data in of_bounds.DATASETS:
        names = [n for n in runs if n.startswith(f"{data}/") and "/S=1/" in n]
        smaller = [gap(n) - gap(n.replace("/S=1/", "/S=4/")) for n in names]
        assert sum(smaller) / len(smaller) < 1
    for row in of_bounds.scores_of_four().splitlines()[2:]:
        difference, error = map(float, row.split("|")[3].split("±"))
        assert abs(difference) < 3 * error


def test_what_the_guide_says_of_queries_against_s_is_so():
    measured = read(RESULTS / "singlecell.json", {}).values()
    (taken,) = [found["inference"]["marginal_ll"] for found in measured if "inference" in found]
    seconds = {name: found["median"] for name, found in taken["seconds"].items()}
    assert round(seconds["S = 8"] / seconds["S = 1"], 2) == 1.06
    assert round(seconds["S = 64"] / seconds["S = 1"], 1) == 1.4


def test_what_the_guide_says_of_many_components_is_so():
    times = read(RESULTS / "many_components.json", {})["times"]

    def ratios(data, estimator, size=256):
        models = times[data]["models"]
        found = [models[f"trunk, {estimator} from {n}, S = {size}"] for n in (2, 4)]
        return [row["ratio"]["median"] for row in found]

    assert max(ratios("cortex", "s2s") + ratios("mnist", "s2s")) < 1
    for data in ("cortex", "mnist"):
        many, few = ratios(data, "s2a"), ratios(data, "s2a", size=4)
        assert 2 <= min(many) <= max(many) <= 3
        assert all(3 <= a / b <= 4 for a, b in zip(many, few, strict=True))


def test_what_the_guide_says_of_the_bounds_of_many_components_is_so():
    bounds = read(RESULTS / "many_components.json", {})["bounds"]

    def gains(data, estimator, key="log_likelihood"):
        """S to what shared encoders add to one component, a number a seed."""
        names = [name for name in bounds[data] if name.startswith(f"trunk, {estimator}")]
        found = {int(n.split("S = ")[1]): of_bounds.over_one(bounds[data], n, key) for n in names}
        assert list(found) == [1, 4, 16, 64, 256]
        assert {len(values) for values in found.values()} == {3}
        return found

    def means(data, estimator):
        return {s: np.mean(values) for s, values in gains(data, estimator).items()}

    for estimator in ("s2a", "s2s"):
        found = gains("cortex", estimator)
        assert all(1 < interval(found[s])[0] < 3.05 for s in (4, 16, 64, 256))
        assert all(abs(interval(found[s])[0]) < interval(found[s])[1] for s in (4, 16, 64, 256))
        assert max(map(np.mean, found.values())) - np.mean(found[4]) < 0.5
    s2a, s2s = means("mnist", "s2a"), means("mnist", "s2s")
    assert sorted(s2a.values(), reverse=True) == list(s2a.values())
    assert s2s[4] > 0 > max(s2s[s] for s in (16, 64, 256))
    assert all(s2a[s] > s2s[s] for s in s2a)
    path = [interval(gains("mnist", "s2a", key)[1]) for key in of_bounds.GAINS]
    assert [(round(m, 1), round(h, 1)) for m, h in path] == [(4.9, 1.3), (5.5, 0.9)]


def test_what_is_said_of_the_two_dimensional_targets_is_so():
    runs = read(EXPERIMENTS / "density2d.json", {})["runs"]
    pairs, light = ("bimodal", "bimodal, s = 0.5"), "light mode (0.2)"

    def found(target, family):
        return list(by_seed(runs, f"{target}/{family}").values())

    def masses(target, family):
        return [run["mass"][light] for run in found(target, family)]

    others, fell_short = [f for f in density2d.METHODS if f != "mixture"], []
    for target in ("ring", *pairs):
        seeds = by_seed(runs, f"{target}/mixture")
        assert all(by_seed(runs, f"{target}/{family}").keys() == seeds.keys() for family in others)
        for seed, best in seeds.items():
            rest = [runs[f"{target}/{family}/seed={seed}"] for family in others]
            if target == "bimodal" and best["mass"][light] < 0.1:
                fell_short.append(seed)
                continue
            for key in ("kl_q_p", "kl_p_q"):
                assert best[key] < 0.4
                assert all(best[key] < run[key] for run in rest if key in run)
            assert abs(best["evidence_mean"] - 1) < 0.01
            right = [r["evidence_sd"] for r in rest if abs(r["evidence_mean"] - 1) < 0.01]
            assert sum(spread < best["evidence_sd"] for spread in right) <= 1
    assert len(fell_short) == 1
    there = {
        family: sorted(round(30 * mass) for mass in masses("bimodal", family))
        for family in ("mixture", "ensemble")
    }
    assert there == {"mixture": [2, 4, 4, 6, 6], "ensemble": [2, 2, 2, 2, 3]}
    assert sum("kl_p_q" not in run for run in found("ring", "iaf")) == 2
    for target in pairs:
        assert max(masses(target, "dm_pmc/0.1")) < 0.001
        assert min(masses(target, "dm_pmc/0.3") + masses(target, "dm_pmc/0.5")) > 0.03
    flows = masses("bimodal", "iaf")
    assert all(min(mass, 1 - mass) < 0.01 for mass in flows)
    assert sum(mass < 0.01 for mass in flows) > len(flows) / 2
    assert max(masses("bimodal, s = 0.5", "ensemble")) < 0.01
    for sharp, *blurred in zip(
        *(found("ring", f"dm_pmc/{scale}") for scale in density2d.DM_PMC_SCALES), strict=True
    ):
        assert all(run["kl_q_p"] > 5 * sharp["kl_q_p"] for run in blurred)


def test_what_is_said_of_path_gradients_is_so():
    runs = read(EXPERIMENTS / "path_gradients.json", {})["runs"]
    pairs = [(n.replace("/path/", "/whole/"), n) for n in runs if "/path/" in n]
    assert len(pairs) == 6
    likelihoods = [runs[w]["nll_pooled"] - runs[p]["nll_pooled"] for w, p in pairs]
    bounds = [
        runs[p]["trainings"][0]["val_bound"] - runs[w]["trainings"][0]["val_bound"]
        for w, p in pairs
    ]
    assert 0.3 <= round(min(likelihoods), 1) <= round(max(likelihoods), 1) <= 0.6
    assert 0.7 <= round(min(bounds), 1) <= round(max(bounds), 1) <= 1.0
    assert all(b > n for b, n in zip(bounds, likelihoods, strict=True))
    assert {runs[n]["trainings"][0]["epochs"] for n in runs} == {20}


def differences(file, first, second, *keys, n_seeds=5):
    """Interval of first minus second over seeds, of a figure at the end of `keys`."""
    runs = read(EXPERIMENTS / file, {})["runs"]

    def figures(name):
        return {seed: reduce(getitem, keys, run) for seed, run in by_seed(runs, name).items()}

    values = paired(figures(first), figures(second))
    assert len(values) == n_seeds
    return interval(values)


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


def test_what_is_said_of_planted_changes_is_so():
    runs = read(EXPERIMENTS / "planted.json", {})["runs"]

    def of(data, job):
        found = list(by_seed(runs, f"{data}/{job}").values())
        assert len(found) == 5
        return found

    careful = [
        run
        for job in ("scvi/uniform", "mixture/uniform", "mixture/importance_by_cell")
        for run in of("sc_mixology", job)
    ]
    assert {run["n_planted"] for run in careful} == {116}
    assert min(run["auroc"] for run in careful) > 0.99
    assert max(run["0.05"]["recall"] for run in careful) < 0.125
    assert max(run["0.05"]["false"] for run in careful) == 0
    recalls, false = ([run["0.2"][key] for run in careful] for key in ("recall", "false"))
    assert (round(min(recalls), 2), round(max(recalls), 2)) == (0.86, 0.98)
    assert (round(min(false), 2), round(max(false), 2)) == (0.02, 0.19)

    def gained(*keys, data="sc_mixology"):
        names = [f"{data}/mixture/{w}" for w in ("importance_by_cell", "uniform")]
        return differences("planted.json", *names, *keys)

    for keys, said in ((("fold_change",), (0.05, 0.03)), (("0.2", "false"), (0.05, 0.04))):
        assert tuple(round(n, 2) for n in gained(*keys)) == said
    assert tuple(round(100 * n, 1) for n in gained("0.05", "recall")) == (2.8, 2.4)
    means = [
        sum(run["fold_change"] for run in of("sc_mixology", f"mixture/{w}")) / 5
        for w in ("importance_by_cell", "uniform")
    ]
    assert [round(mean, 2) for mean in means] == [0.79, 0.75]
    pooled = of("sc_mixology", "mixture/importance")
    assert sum(run["0.05"]["false"] > 0.5 for run in pooled) == 3
    assert min(run["0.2"]["false"] for run in pooled) > 0.66
    cortex = [
        run
        for job in ("scvi/uniform", "mixture/uniform", "mixture/importance_by_cell")
        for run in of("cortex", job)
    ]
    assert {run["n_planted"] for run in cortex} == {119}
    assert max(run["0.05"]["recall"] for run in cortex) < 0.01
    assert max(run["0.05"]["false"] for run in cortex) == 0
    recalls = [run["0.2"]["recall"] for run in cortex]
    assert (round(min(recalls), 2), round(max(recalls), 2)) == (0.32, 0.71)
    assert max(run["0.2"]["false"] for run in cortex) <= 0.05
    for keys, said in ((("fold_change",), (0.03, 0.03)), (("0.2", "recall"), (0.09, 0.07))):
        assert tuple(round(n, 2) for n in gained(*keys, data="cortex")) == said
    gain, half = gained("0.2", "false", data="cortex")
    assert abs(gain) < half
    pooled = of("cortex", "mixture/importance")
    assert sum(run["0.05"]["false"] > 0.5 for run in pooled) == 4
    for job in ("scvi/uniform", "mixture/uniform", "mixture/importance_by_cell"):
        for run in of("pbmc68k", job):
            assert run["n_planted"] == 30
            assert run["0.05"]["recall"] == run["0.2"]["recall"] == run["0.2"]["false"] == 0
    for run in of("pbmc68k", "mixture/importance"):
        assert run["0.2"]["false"] == 0 or run["0.2"]["false"] > 0.9


def test_what_is_said_of_fast_and_plain_training_is_so():
    runs = read(RESULTS / "same_bounds.json", {})["runs"]
    for first, second in (("fast", "plain"), ("bf16", "fast")):
        for data in of_bounds.DATASETS:
            for size in (1, 4):
                names = [f"{data}/S={size}/{path}" for path in (first, second)]
                for key in ("miselbo", "log_likelihood"):
                    both = [{s: r[key] for s, r in by_seed(runs, n).items()} for n in names]
                    gain, half = interval(paired(*both))
                    assert abs(gain) < max(half, 0.05)


def test_what_is_said_of_eq_17_with_the_papers_draws_is_so():
    said = {"cortex": (1.8, 2.7), "sc_mixology": (0.6, 2.2), "pbmc68k": (-1.1, 1.3)}
    for data, expected in said.items():
        names = [f"{data}/mixture/S={size}/Eq. 17" for size in (4, 1)]
        found = differences("decoders.json", *names, "eq17")
        assert tuple(round(value, 1) for value in found) == expected


def runs_of_decoders():
    """Those that the text compares: not Eq. 17 alone, nor longer training."""
    runs = read(EXPERIMENTS / "decoders.json", {})["runs"]
    others = ("Eq. 17", "longer")
    return {name: run for name, run in runs.items() if not any(other in name for other in others)}


def test_what_is_said_of_decoders_and_posteriors_is_so():
    def difference(data, model, *keys, of="mixture"):
        first, one = f"{data}/{model}/S=4", f"{data}/{of}/S=1"
        return differences("decoders.json", first, one, *keys)

    models = [(data, "mixture") for data in of_bounds.DATASETS]
    models += [("cortex", "default"), ("sc_mixology", "default")]
    for data, model in models:
        gain, half = difference(data, model, "test", "log_p", of=model)
        assert abs(gain) < half < 2.4
        wider, half = difference(data, model, "test", "gap", of=model)
        assert (abs(wider) < half) != ((data, model) == ("cortex", "mixture"))
    for model, expected in (("mixture", (-2.5, 1.4)), ("ensemble", (-3.0, 0.8))):
        found = difference("cortex", model, "test", "gap")
        assert tuple(round(number, 1) for number in found) == expected
    gain, _ = difference("cortex", "ensemble", "test", "log_p")
    assert abs(gain) < 0.05

    most = [
        abs(gain) + half
        for data, model in models
        for gain, half in [difference(data, model, "test", "log_p", of=model)]
    ]
    assert round(max(most), 1) == 2.3
    trained_on = {
        (data, model): difference(data, model, "training", "log_p", of=model)
        for data, model in models
    }
    assert tuple(round(n, 1) for n in trained_on.pop(("cortex", "mixture"))) == (4.1, 3.2)
    assert all(abs(gain) < half for gain, half in trained_on.values())

    runs = runs_of_decoders()
    ensemble, one = (by_seed(runs, f"cortex/{model}") for model in ("ensemble/S=4", "mixture/S=1"))
    apart = sorted(abs(ensemble[s]["test"]["log_p"] - one[s]["test"]["log_p"]) for s in one)
    assert round(apart[-1], 2) == 0.05
    for name, run in runs.items():
        assert run["test"]["still_rising"] < 0.02, name


def test_what_is_said_of_longer_training_is_so():
    def difference(first, second, *keys, data="sc_mixology"):
        names = f"{data}/{first}", f"{data}/{second}"
        return tuple(round(n, 1) for n in differences("decoders.json", *names, *keys))

    both, none = "longer, batch norm both", "longer, batch norm none"
    assert difference("default/S=1", "mixture/S=1", "test", "log_p") == (-29.5, 1.1)
    training = difference("default/S=1", "mixture/S=1", "training", "log_p")
    assert [round(n) for n in training] == [-20, 3]
    assert difference(both, "mixture/S=1", "test", "log_p") == (-11.3, 3.8)
    assert difference(none, "mixture/S=1", "test", "log_p") == (0.2, 3.4)
    assert [round(n) for n in difference(none, both, "test", "log_p")] == [12, 2]
    assert [round(n) for n in difference(both, "default/S=1", "test", "log_p")] == [18, 4]
    assert [round(n) for n in difference(both, "default/S=1", "test", "gap")] == [14, 2]
    assert difference(both, "default/S=1", "test", "miselbo") == (4.5, 5.6)
    assert difference(both, "default/S=1", "test", "log_p", data="cortex") == (-3.9, 2.1)
    assert difference(both, "default/S=1", "test", "miselbo", data="cortex") == (-9.9, 2.8)
    training = difference(both, "default/S=1", "training", "log_p", data="cortex")
    assert [round(n) for n in training] == [21, 3]
    assert difference(none, both, "test", "log_p", data="cortex") == (4.1, 2.5)


def test_what_is_said_of_own_draws_is_so():
    runs = runs_of_decoders()

    def short(model):
        found = by_seed(runs, model).values()
        return [run["test"]["log_p"] - run["test"]["own_draws"] for run in found]

    for data, expected in (
        ("cortex/mixture", (4.5, 1.0)),
        ("sc_mixology/mixture", (3.1, 1.0)),
        ("pbmc68k/mixture", (0.2, 0.6)),
        ("cortex/default", (4.4, 3.1)),
        ("sc_mixology/default", (6.3, 7.0)),
    ):
        both = zip(short(f"{data}/S=1"), short(f"{data}/S=4"), strict=True)
        found = interval([one - four for one, four in both])
        assert tuple(round(number, 1) for number in found) == expected
    cortex = {name.rsplit("/", 1)[0] for name in runs if name.startswith("cortex/")}
    means = [interval(short(model))[0] for model in cortex]
    assert (round(min(means), 1), round(max(means), 1)) == (7.9, 12.8)


def test_what_is_said_of_gaps_of_cells_not_seen_is_so():
    runs = runs_of_decoders()

    def less(model):
        """By how many per cent the mean gap of training cells is below that of test cells."""
        found = by_seed(runs, model).values()
        test, training = (sum(run[group]["gap"] for run in found) for group in ("test", "training"))
        return round(100 * (1 - training / test))

    models = {name.rsplit("/", 1)[0] for name in runs}
    others = [less(model) for model in models if not model.startswith("sc_mixology")]
    assert (min(others), max(others)) == (66, 88)
    assert [less(f"sc_mixology/mixture/S={size}") for size in (1, 4)] == [58, 62]
    assert [less(f"sc_mixology/default/S={size}") for size in (1, 4)] == [46, 51]


def test_what_is_said_of_latents_of_images_is_so():
    runs = read(EXPERIMENTS / "latents.json", {})["runs"]
    mixture, ensemble, vae = (
        [list(by_seed(runs, f"mnist/{name}/S={size}").values()) for size in range(1, 6)]
        for name in ("mixture", "ensemble", "vae")
    )
    for key, gained in (("accuracy", [2.3, 2.8]), ("accuracy_reduced", [0.7, 1.4])):
        found = [last[key] - one[key] for one, last in zip(mixture[0], mixture[4], strict=True)]
        assert sorted(round(100 * points, 1) for points in found) == gained
    falls = [one["nll"] - last["nll"] for one, last in zip(mixture[0], mixture[4], strict=True)]
    assert sorted(round(nats, 1) for nats in falls) == [0.8, 1.2]
    for ours, theirs in zip(mixture[1:], ensemble[1:], strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert 0.15 < b["nll"] - a["nll"] < 0.85
            assert -0.00065 < a["accuracy"] - b["accuracy"] < 0.0035
    for ours, theirs in zip(mixture[2:], ensemble[2:], strict=True):
        assert all(a["jsd"] > b["jsd"] for a, b in zip(ours, theirs, strict=True))
    for column, paper in zip(vae, (94.9, 94.8, 94.9, 94.8, 94.8), strict=True):
        assert all(7.5 < paper - 100 * run["accuracy"] < 12.5 for run in column)


REFINED = ("cortex", "sc_mixology", "pbmc68k", "cortex/default", "sc_mixology/default")


def gains_of_refinement(model, stage, group="test"):
    """Every run's gain in MISELBO over the model that it started from: S = 1, then S = 4."""
    runs = read(EXPERIMENTS / "refinement.json", {})["runs"]
    return [
        run[group]["miselbo"] - before[seed][group]["miselbo"]
        for size in (1, 4)
        for before in [by_seed(runs, f"{model}/before/S={size}")]
        for seed, run in by_seed(runs, f"{model}/{stage}/S={size}").items()
    ]


def refinement(model, size, stages, *keys):
    names = [f"{model}/{stage}/S={size}" for stage in stages]
    return differences("refinement.json", *names, *keys)


def test_what_is_said_of_refined_encoders_is_so():
    gains = {model: gains_of_refinement(model, "refined") for model in REFINED}
    assert all(len(found) == 10 for found in gains.values())
    for models, expected in ((REFINED[:3], (1.0, 8.4)), (REFINED[3:], (7.6, 20.1))):
        found = [gain for model in models for gain in gains[model]]
        assert (round(min(found), 1), round(max(found), 1)) == expected
    for model in REFINED:
        for size in (1, 4):
            gain, half = refinement(model, size, ("refined", "before"), "test", "miselbo")
            assert gain > half
    cortex = [
        refinement("cortex/default", s, ("refined", "before"), "test", "miselbo")[0] for s in (1, 4)
    ]
    mixology = [
        refinement("sc_mixology/default", s, ("refined", "before"), "test", "miselbo")[0]
        for s in (1, 4)
    ]
    assert {round(gain) for gain in cortex} == {10}
    assert {round(gain) for gain in mixology} == {12, 14}


def test_what_is_said_of_four_refined_encoders_and_of_one_is_so():
    def ahead(model, first, second):
        names = [f"{model}/{stage}/S={size}" for stage, size in (first, second)]
        return differences("refinement.json", *names, "test", "miselbo")

    fours = {model: ahead(model, ("refined", 4), ("refined", 1)) for model in REFINED}
    found = fours.pop("sc_mixology/default")
    assert tuple(round(number, 1) for number in found) == (2.3, 0.8)
    assert all(abs(gain) < half for gain, half in fours.values())
    gains = gains_of_refinement("sc_mixology/default", "refined")
    assert len(gains) == 10
    ones = [ahead(model, ("refined", 1), ("before", 4)) for model in REFINED]
    assert (round(min(g for g, _ in ones)), round(max(g for g, _ in ones))) == (2, 10)
    assert sum(gain > half for gain, half in ones) == 4


def test_what_is_said_of_training_on_is_so():
    ahead, alone = {}, {}
    for model in REFINED:
        pairs = zip(
            gains_of_refinement(model, "refined"), gains_of_refinement(model, "longer"), strict=True
        )
        assert all(refined > longer for refined, longer in pairs)
        stages = ("refined", "longer")
        ahead[model] = [refinement(model, s, stages, "test", "miselbo")[0] for s in (1, 4)]
        price = [
            after - before
            for after, before in zip(
                gains_of_refinement(model, "refined", "training"),
                gains_of_refinement(model, "longer", "training"),
                strict=True,
            )
        ]
        assert -7 < min(price) < max(price) < -0.7
        alone[model] = gains_of_refinement(model, "longer")
        assert min(gains_of_refinement(model, "longer", "training")) > 0
    for model in ("cortex", "cortex/default"):
        assert all(7.5 < gain < 10.5 for gain in ahead[model])
    assert all(round(gain) == 6 for gain in ahead["pbmc68k"])
    mixology = [*ahead["sc_mixology"], *ahead["sc_mixology/default"]]
    assert (round(min(mixology), 1), round(max(mixology), 1)) == (3.4, 4.4)
    without = [gain for model in REFINED[:3] for gain in alone[model]]
    assert sum(gain > 0 for gain in without) == 1
    assert -5.05 < min(without)
    assert 0.4 < min(alone["cortex/default"]) < max(alone["cortex/default"]) < 5
    assert 6 < min(alone["sc_mixology/default"]) < max(alone["sc_mixology/default"]) < 16.05
    means = [
        refinement(model, s, ("longer", "before"), "test", "miselbo")[0]
        for model in REFINED[3:]
        for s in (1, 4)
    ]
    assert [round(mean) for mean in means] == [2, 2, 10, 9]


def test_what_is_said_of_scores_after_refinement_is_so():
    beyond = {"before": [], "longer": []}
    for model in ("cortex", "cortex/default"):
        for size in (1, 4):
            stages = ("refined", "before")
            gain, half = refinement(model, size, stages, "scores", "svm")
            assert 0.0025 < gain < 0.0055
            beyond["before"] += [(model, size)] * (gain > half)
            gain, half = refinement(model, size, ("refined", "longer"), "scores", "svm")
            beyond["longer"] += [(model, size)] * (gain > half)
            for score in ("ari", "nmi"):
                gain, half = refinement(model, size, stages, "scores", score)
                assert abs(gain) < half
                gain, half = refinement(model, size, ("refined", "longer"), "scores", score)
                moved = (model, size) == ("cortex/default", 1)
                assert (abs(gain) > half) == moved
                if moved:
                    said = {"ari": (0.013, 0.010), "nmi": (0.015, 0.008)}[score]
                    assert (round(gain, 3), round(half, 3)) == said
    assert beyond["before"] == [("cortex", 4), ("cortex/default", 4)]
    assert len(beyond["longer"]) == 3


def test_what_is_said_of_fashion_mnist_is_so():
    runs = read(EXPERIMENTS / "latents.json", {})["runs"]
    mixture, ensemble, vae = (
        [runs[f"fashion_mnist/{name}/S={size}/seed=0"] for size in range(1, 6)]
        for name in ("mixture", "ensemble", "vae")
    )
    for rows, name in ((mixture, "mixture"), (ensemble, "ensemble")):
        paper = [float(figure.split()[0]) for figure in TABLE_8[name][1:]]
        ours = [100 * row["accuracy"] for row in rows[1:]]
        assert max(abs(a - b) for a, b in zip(ours, paper, strict=True)) < 0.85
    ahead = [
        round(100 * (a["accuracy"] - b["accuracy"]), 1)
        for a, b in zip(mixture[1:], ensemble[1:], strict=True)
    ]
    assert all(0.3 <= points <= 0.7 for points in ahead[:3])
    assert abs(ahead[3]) < 0.1
    nlls = [row["nll"] for row in mixture]
    assert nlls == sorted(nlls, reverse=True)
    assert round(nlls[0] - nlls[4], 1) == 0.8
    assert round(ensemble[0]["nll"] - ensemble[4]["nll"], 1) == 0.2
    below = [79.6 - 100 * row["accuracy"] for row in vae[1:]]
    assert 9 < min(below) < max(below) < 14


def test_what_is_said_of_big_encoders_is_so():
    runs = read(EXPERIMENTS / "big_iwae.json", {})["runs"]
    for size, short, pooled in ((2, 0.04, 0.09), (3, 0.11, 0.14)):
        found, units, layers = (
            runs[f"mnist/{name}/S={size}/seed=0"]
            for name in ("mixture", "iwae_units", "iwae_layers")
        )
        assert round(units["nll"] - found["nll"], 2) == short
        assert round(units["nll_pooled"] - found["nll_pooled"], 2) == pooled
        one = runs["mnist/mixture/S=1/seed=0"]
        assert layers["nll"] > one["nll"] + 10
        assert max(found["nll"], units["nll"]) < one["nll"]
        assert float(_paper_images.TABLE_7["iwae_units"][1]) > float(
            _paper_images.TABLE_7["mixture"][0]
        )


def test_what_is_said_of_the_gap_of_images_is_so():
    runs = read(EXPERIMENTS / "inference_gap_images.json", {})["runs"]

    def of(size, key, group="test"):
        found = by_seed(runs, f"mnist/mixture/S={size}")
        return {seed: run[group][key] for seed, run in found.items()}

    def less(first, second):
        return tuple(round(number, 1) for number in interval(paired(first, second)))

    for size in (1, 4):
        won = interval(paired(of(size, "gap/one Gaussian"), of(size, "gap/four Gaussians")))
        assert round(won[0], 2) == 0.54
        assert won[1] < 0.1
    assert less(of(1, "gap/encoders"), of(4, "gap/encoders")) == (0.9, 0.6)
    assert less(of(1, "gap/100 steps"), of(4, "gap/100 steps")) == (0.7, 0.4)
    for group in ("test", "training"):
        for size, family in ((1, "one Gaussian"), (4, "four Gaussians")):
            whole, best = of(size, "gap/encoders", group), of(size, f"gap/{family}", group)
            shares = [1 - best[seed] / whole[seed] for seed in whole]
            assert 0.59 < min(shares) < max(shares) < 0.69
            left = interval(list(of(size, "gap/full covariance", group).values()))[0]
            assert 0.7 < left < 0.85
    assert all(0.09 < run["test"]["effective_share"] < 0.13 for run in runs.values())


def test_what_is_said_of_the_gap_of_cells_is_so():
    runs = read(EXPERIMENTS / "inference_gap.json", {})["runs"]
    data_sets = ("cortex", "sc_mixology", "pbmc68k")

    def of(data, size, key, group="test"):
        found = by_seed(runs, f"{data}/mixture/S={size}")
        return {seed: run[group][key] for seed, run in found.items()}

    def means(key, sizes=(1, 4), group="test", digits=1, scale=1):
        found = [np.mean(list(of(d, s, key, group).values())) for d in data_sets for s in sizes]
        return round(scale * min(found), digits), round(scale * max(found), digits)

    assert means("gap/encoders", digits=0) == (13, 29)
    assert means("gap/encoders", group="training", digits=0) == (2, 10)
    assert means("gap/one Gaussian") == (0.8, 1.3)
    assert means("gap/full covariance") == (0.2, 0.2)
    assert means("gap/100 steps", [1]) == (0.9, 1.5)
    assert means("gap/100 steps", [4]) == (0.6, 1.0)
    assert means("gap/25 steps", digits=0) == (3, 5)
    for group, least, most in (("test", 92, 98), ("training", 66, 95)):
        shares = []
        for data in data_sets:
            for size, family in ((1, "one Gaussian"), (4, "four Gaussians")):
                whole, left = (
                    of(data, size, "gap/encoders", group),
                    of(data, size, f"gap/{family}", group),
                )
                assert len(whole) == 5
                shares += [100 * (1 - left[seed] / whole[seed]) for seed in whole]
                pair = of(data, size, "gap/one Gaussian"), of(data, size, "gap/four Gaussians")
                assert round(np.mean(paired(*pair)), 1) in (0.3, 0.4, 0.5)
        assert (int(min(shares)), round(max(shares))) == (least, most)
    per_cent = {"digits": 0, "scale": 100}
    assert means("covered/encoders", [1], **per_cent) == (2, 12)
    assert means("covered/encoders", [4], **per_cent) == (5, 13)
    assert means("covered/100 steps", [1], **per_cent) == (55, 66)
    assert means("covered/100 steps", [4], **per_cent) == (67, 76)
    assert means("expression/encoders", [1], **per_cent) == (48, 62)
    assert means("expression/encoders", [4], **per_cent) == (65, 66)
    assert means("expression/100 steps", [1], **per_cent) == (86, 87)
    assert means("expression/100 steps", [4], **per_cent) == (88, 88)

    trained_on = {"group": "training", **per_cent}
    assert means("expression/encoders", [1], **trained_on) == (64, 82)
    assert means("expression/encoders", [4], **trained_on) == (75, 86)
    assert means("expression/100 steps", [1], **trained_on) == (87, 88)
    assert means("expression/100 steps", [4], **trained_on) == (88, 89)

    def ahead(data, key, group="test"):
        return interval(paired(of(data, 4, key, group), of(data, 1, key, group)))

    for data, expected in {"cortex": (9, 2), "sc_mixology": (12, 3), "pbmc68k": (3, 1)}.items():
        points = ahead(data, "expression/encoders", "training")
        assert tuple(round(100 * number) for number in points) == expected

    said = {"cortex": (18, 1), "sc_mixology": (17, 2), "pbmc68k": (3, 2)}
    for data in data_sets:
        points = ahead(data, "expression/encoders")
        assert tuple(round(100 * number) for number in points) == said[data]
        closer, _ = ahead(data, "gap/100 steps")
        assert round(-closer, 1) in (0.3, 0.4, 0.5)
        for key in ("covered/100 steps", "expression/100 steps"):
            gain, half = ahead(data, key)
            assert gain > half
    for size, expected in ((1, (1.4, 1.2)), (4, (0.8, 0.8))):
        found = by_seed(runs, f"cortex/mixture/S={size}").values()
        gained = {
            score: interval(
                [run["scores/100 steps"][score] - run["scores/encoders"][score] for run in found]
            )
            for score in ("svm_train_to_test", "svm", "ari", "nmi")
        }
        points = gained.pop("svm_train_to_test")
        assert tuple(round(100 * number, 1) for number in points) == expected
        assert points[0] > points[1]
        assert all(abs(gain) < half for gain, half in gained.values())


def test_what_is_said_of_the_uncertainty_with_the_defaults_is_so():
    runs = read(EXPERIMENTS / "inference_gap.json", {})["runs"]
    defaults = ("cortex/default", "sc_mixology/default")
    settings = (*(f"{data}/mixture" for data in of_bounds.DATASETS), *defaults)

    def of(setting, size, key, group):
        found = by_seed(runs, f"{setting}/S={size}")
        assert len(found) == 5
        return {seed: run[group][key] for seed, run in found.items()}

    def means(key, group, sizes, among=settings):
        found = [np.mean(list(of(name, s, key, group).values())) for name in among for s in sizes]
        return min(found), max(found)

    def per_cent(*asked):
        return tuple(round(100 * share) for share in means(*asked))

    for group, size, all_settings, with_defaults in (
        ("test", [1], (45, 62), (45, 47)),
        ("test", [4], (62, 66), (62, 64)),
        ("training", [1], (56, 82), (56, 66)),
        ("training", [4], (75, 86), (78, 79)),
    ):
        assert per_cent("expression/encoders", group, size) == all_settings
        assert per_cent("expression/encoders", group, size, defaults) == with_defaults
    assert per_cent("expression/100 steps", "test", [1, 4], defaults) == (87, 89)
    assert per_cent("expression/100 steps", "training", [1, 4], defaults) == (88, 90)
    refined = [per_cent("expression/100 steps", group, [1, 4]) for group in ("test", "training")]
    assert (min(refined)[0], max(refined)[1]) == (86, 90)

    ahead = {}
    for name in settings:
        key = "expression/encoders"
        ahead[name] = interval(paired(of(name, 4, key, "training"), of(name, 1, key, "training")))
        assert ahead[name][0] > ahead[name][1]
    said = [tuple(round(100 * number) for number in ahead[name]) for name in defaults]
    assert said == [(12, 6), (23, 7)]

    def rounded(key, sizes, digits, among=defaults):
        return tuple(round(nats, digits) for nats in means(key, "test", sizes, among))

    assert rounded("gap/encoders", [1, 4], 0, settings) == (13, 32)
    assert rounded("gap/encoders", [1, 4], 0) == (27, 32)
    assert rounded("gap/one Gaussian", [1, 4], 1) == (1.0, 1.2)
    assert rounded("gap/100 steps", [1], 1) == (1.4, 1.4)
    assert rounded("gap/100 steps", [4], 1) == (0.7, 0.8)
    shares = []
    for name in settings:
        for size, family in ((1, "one Gaussian"), (4, "four Gaussians")):
            pair = (of(name, size, f"gap/{f}", "test") for f in ("one Gaussian", "four Gaussians"))
            assert round(np.mean(paired(*pair)), 1) in (
                (0.4, 0.5) if name in defaults else (0.3, 0.4, 0.5)
            )
            whole, left = (
                of(name, size, "gap/encoders", "test"),
                of(name, size, f"gap/{family}", "test"),
            )
            shares += [100 * (1 - left[s] / whole[s]) for s in whole if name in defaults]
    assert (int(min(shares)), round(max(shares))) == (94, 98)


def test_what_is_said_of_decoders_of_images_is_so():
    runs = read(EXPERIMENTS / "decoders_images.json", {})["runs"]

    def of(job, key):
        found = by_seed(runs, f"mnist/{job}")
        assert len(found) == 3
        return {seed: run[key] for seed, run in found.items()}

    def below(first, second, digits=2):
        return tuple(round(n, digits) for n in interval(paired(of(*second), of(*first))))

    one, four, ensemble = "mixture/S=1", "mixture/S=4", "ensemble/S=4"
    for size, said in ((2, (0.5, 0.4)), (3, (0.7, 0.2)), (4, (0.7, 0.1)), (5, (0.9, 0.5))):
        assert below((f"mixture/S={size}", "nll_refined"), (one, "nll_refined"), 1) == said
    assert below((ensemble, "nll_refined"), (one, "nll_refined")) == (0.2, 0.01)
    assert below((four, "nll_refined"), (ensemble, "nll_refined")) == (0.51, 0.14)
    for job, pooled, eq17 in (
        (four, (1.13, 0.09), (0.78, 0.08)),
        (ensemble, (0.69, 0.06), (0.38, 0.05)),
    ):
        assert below((job, "nll_pooled"), (one, "nll_pooled")) == pooled
        assert below((job, "nll"), (one, "nll")) == eq17
    assert below((one, "nll_refined"), (one, "nll")) == (0.97, 0.08)
    assert below((four, "nll_refined"), (four, "nll_pooled")) == (0.54, 0.05)
