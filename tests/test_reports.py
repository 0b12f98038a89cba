"""Tables of the readme and the documentation are those of the JSON."""

from itertools import pairwise

import matplotlib.pyplot as plt
import pytest
from recorded import DOCS, EXPERIMENTS

from benchmarks import RESULTS, figures, report
from benchmarks import _report_bounds as of_bounds
from benchmarks import _report_times as of_times
from scmixvi.experiments import report as experiment_report
from scmixvi.experiments._reports import paper_images as _paper_images


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
    assert "every added component gains less than the one before" in guide
    for row in _paper_images.TABLE_1.values():
        nlls = [mean for mean, _ in row]
        gained = [one - more for one, more in pairwise(nlls)]
        assert sorted(gained, reverse=True) == gained
    page = " ".join((DOCS / "experiments_images.md").read_text().split())
    lowest = min(mean for row in _paper_images.TABLE_1.values() for mean, _ in row)
    assert f"The lowest figure that the paper has is {lowest:.2f} nats" in page
    listed = min(float(figure.split()[0]) for _, figure in _paper_images.TABLE_3)
    assert f"the lowest of a VAE in the last table is {listed:.2f}" in page
