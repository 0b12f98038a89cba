"""The report of the single-cell experiments: figures in their places, verdicts, empty cells."""

import json

import matplotlib.pyplot as plt
import pytest
from scipy import stats

from scmixvi.experiments import report
from scmixvi.experiments._reports import integration as _report_integration
from scmixvi.experiments._reports import monotone


def run(value, n_components=2):
    names = ("svm", "svm_train_to_test", "ari", "nmi")
    scores = {r: dict.fromkeys(names, value) for r in ("params", "mean", "moments", "pca")}
    if n_components == 1:
        scores["draws/S=1"] = dict.fromkeys(names, value / 2)
    bounds = dict.fromkeys(("miselbo", "gap", "jsd", "log_likelihood_eq17"), value)
    return {"log_likelihood": value, "scores": scores, **bounds}


def rows(text, label):
    """Cells of all rows with this label in their first column."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [line[1:] for line in lines if line[0] == label]


@pytest.fixture
def folder(tmp_path):
    runs = {
        "mixture/S=1/seed=0": run(0.50, 1),
        "mixture/S=1/seed=1": run(0.60, 1),
        "mixture/S=2/seed=0": run(0.70),
        "mixture/S=2/seed=1": run(0.72),
        "ensemble/S=2/seed=1": run(0.65),
    }
    (tmp_path / "cortex.json").write_text(json.dumps({"runs": runs}))
    return tmp_path


def test_cortex_tables_hold_means_intervals_and_paired_differences(folder):
    report.write(folder, folder)
    text = (folder / "cortex.md").read_text()
    assert text.startswith("2 seeds: 0, 1.")
    svm, *_ = rows(text, "Mixture VAE")
    low, high = stats.t.interval(0.95, 1, loc=71, scale=stats.sem([70, 72]))
    assert svm[:3] == ["55.00 ± 63.53", f"71.00 ± {(high - low) / 2:.2f}", "not run"]
    baseline, *_ = rows(text, "VAE (scVI)")
    assert baseline[:2] == ["27.50 ± 31.77", "not run"]
    ensemble, *_ = rows(text, "Ensemble VAE")
    assert ensemble[1] == "65.00", "one seed has no interval"
    # differences 0.20 and 0.12
    assert rows(text, "mean, mixture")[0][1] == "+16.00 ± 50.82"
    assert rows(text, "mean, ensemble")[0][1] == "+5.00", "paired with the seed that has both"
    assert rows(text, "*Mixture VAE, paper*")[1] == ["0.82", "0.82", "0.84", "0.85", "0.85"]
    assert rows(text, "scvi-tools' SCVI")[0][0] == "not run"
    assert rows(text, "mixture, S = 2")[0][3] == "+0.16 ± 0.51"
    assert rows(text, "mixture, S = 5")[0] == ["not run"] * 6
    assert (folder / "cortex.png").stat().st_size > 5000


def test_monotone_reads_all_experiments_and_computes_its_verdict(folder):
    runs = {f"mnist/S={s}/seed={k}": {"nll": 90 - s + 0.1 * k} for s in (1, 2) for k in range(3)}
    runs |= {f"mnist/S=3/seed={k}": {"nll": 88 + 0.2 * k} for k in range(3)}
    scheme = {"epochs": 50, "patience": 100, "warmup_epochs": 12, "learning_rate": 1e-3}
    training = {"epochs": 50, "stopped_early": False, "scheme": scheme}
    for name, run in runs.items():
        run["trainings"] = [training | {"name": name.split("/")[1]}]
    (folder / "monotone_images.json").write_text(json.dumps({"runs": runs}))
    report.write(folder, folder)
    text = (folder / "monotone.md").read_text()
    steps = rows(text, "MNIST (MLP)")[2:]
    assert steps[0][:4] == ["1 to 2", "-1.00 ± 0.00", "3 of 3", "holds"]
    # differences 0, 0.1, 0.2: interval 0.1 ± 0.25
    assert steps[1][:4] == ["2 to 3", "+0.10 ± 0.25", "1 of 3", "undecided"]
    assert steps[2][1:4] == ["not run"] * 3
    assert "\nMNIST (MLP): Seed(s): 0, 1, 2. **Fewer epochs than the paper's**" in text
    assert "9 training(s) of 50 epochs (at most 50, KL warm-up 12" in text
    assert rows(text, "cortex (scVI)")[0][:2] == ["Eq. 17", "-0.55 ± 0.64"]
    assert rows(text, "pbmc68k (scVI)")[0][1] == "not run"
    assert (folder / "monotone.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([-1.0, -1.1, -0.9], "holds"),
        ([1.0, 1.1, 0.9], "fails"),
        ([1.0, -1.0, 0.1], "undecided"),
        ([-5.0], "undecided"),
        ([0.0, 0.0], "holds"),
        ([], "not run"),
    ],
)
def test_verdicts(differences, expected):
    assert monotone.verdict(differences) == expected


def test_integration_tables(folder):
    runs = {
        "sc_mixology/scvi/scores/seed=0": {
            "Bio conservation": 0.5,
            "Batch correction": 0.25,
            "Total": 0.4,
        },
        "cortex/scvi/scores/seed=0": {"Bio conservation": 0.5},
        "cortex/scvi/against=0/seed=1": {"ari": 0.5, "de_spearman": 0.9, "de_top_overlap": 0.8},
        "cortex/scvi/against=0/seed=2": {"ari": 0.7, "de_spearman": 0.9, "de_top_overlap": 0.8},
        "cortex/mixture/null/seed=0": {"0.05": [0.0, 0.02], "0.1": [0.0], "0.2": [0.5]},
        "cortex/mixture/null, importance/seed=0": {"0.05": [0.25], "p95": [0.7, 0.9]},
        "cortex/mixture/ambiguous/seed=0": {
            kind: {"JSD": 0.6, "entropy": 0.7, "variance": 0.4, "total count": 1.0}
            for kind in ("doublet", "doublet, thinned", "thinned")
        },
    }
    (folder / "integration.json").write_text(json.dumps({"runs": runs}))
    report.write(folder, folder)
    text = (folder / "integration.md").read_text()
    assert "| sc_mixology | SCVI | 0.500 | 0.250 | 0.400 |" in text
    assert "| cortex | SCVI | 0.500 | - | - |" in text
    assert "| cortex | PCA | not run | not run | not run |" in text
    assert "| cortex | SCVI | 0.600 (0.500 to 0.700) | 0.900 (0.900 to 0.900) |" in text
    assert "| cortex | MixtureSCVI | 1.00 | 0.00 | 50.00 | not run |" in text
    assert "| cortex | MixtureSCVI, importance weights | 25.00 | not run |" in text
    assert "| not run | 0.80 | not run | 1 |" in text
    assert "| cortex | MixtureSCVI | JSD | 0.600 | 0.600 | 0.600 |" in text
    assert "| cortex | no model | total count | 1.000 |" in text


def test_the_integration_figure_shows_every_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(plt, "close", lambda figure: None)
    runs = {
        f"sc_mixology/scvi/scores/seed={seed}": {
            "Bio conservation": 0.5 + seed / 10,
            "Batch correction": 0.25,
        }
        for seed in (0, 1)
    } | {"cortex/pca/scores/seed=0": {"Bio conservation": 0.75}}
    _report_integration.integration_figure(runs, tmp_path / "integration.png")
    shown = {
        ax.get_title(): [points.get_offsets().tolist() for points in ax.collections]
        for ax in plt.gcf().axes
    }
    monkeypatch.undo()
    plt.close()
    assert shown == {
        "cortex": [[[0.75, 0]]],
        "sc_mixology": [[[0.5, 1], [0.6, 1]], [[0.25, 1], [0.25, 1]]],
        "pbmc68k": [],
    }
    assert (tmp_path / "integration.png").stat().st_size > 0


def test_without_any_result_every_cell_is_not_run(tmp_path):
    report.write(tmp_path, tmp_path)
    for name in ("cortex", "monotone", "integration"):
        text = (tmp_path / f"{name}.md").read_text()
        assert "not run" in text
        assert "±" not in text.replace("Mean ±", "").replace("mean ±", "")
