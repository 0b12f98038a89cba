"""Tables of the readme and the documentation are those of the JSON."""

import pytest

from benchmarks import RESULTS, report


@pytest.mark.parametrize("name", report.TABLES)
def test_tables_are_current(name):
    table = report.TABLES[name]()
    assert table.count("\n") > 3
    assert (RESULTS / f"{name}.md").read_text() == table, "run python -m benchmarks.report"


def test_the_readme_is_current():
    text = report.README.read_text()
    assert "<!-- demo -->" in text
    assert report.with_tables(text) == text, "run python -m benchmarks.report"


def test_what_the_readme_says_of_the_gains_is_so():
    runs = report._runs()

    def gains(batch_norm):
        return [
            gain
            for data in report.DATASETS
            for gain in report.gains_of(data, batch_norm, "log_likelihood")
        ]

    assert sum(gain > 0 for gain in gains("none")) == 9
    assert sum(gain > 0 for gain in gains("both")) == 8
    without = [
        runs[f"{data}/bn=none/S=4/seed={seed}"]["log_likelihood"]
        - runs[f"{data}/bn=both/S=4/seed={seed}"]["log_likelihood"]
        for data in report.DATASETS
        for seed in report.SEEDS
    ]
    assert round(min(without), 1) == 0.6
    assert round(max(without), 1) == 2.7
