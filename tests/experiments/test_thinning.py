"""The experiment of thinned encoders, on a corner of the data, and its report."""

import json

import pytest

from scmixvi.experiments import thinning
from scmixvi.experiments._reports import thinning as report


def test_smoke_run_has_every_arm_and_is_reported(tmp_path):
    result = tmp_path / "thinning.json"
    thinning.main(["--smoke", "--result", str(result)])
    runs = json.loads(result.read_text())["runs"]
    names = "default", "thinned", "dropout", "both"
    arms = [(name, size) for name in names for size in (1, 4)]
    more = [(f"{name}, coverage", size) for name, size in arms]
    more += [(f"{name}, refined", size) for name in names[:2] for size in (1, 4)]
    assert set(runs) == {f"cortex/{arm}/S={size}/seed=0" for arm, size in arms + more}
    for arm, size in (job for job in more if job[0].endswith("coverage")):
        found = runs[f"cortex/{arm}/S={size}/seed=0"]["test"]
        assert 0.2 < found["covered/encoders"] < 1
        assert 0.2 < found["expression/encoders"] < 1
    for arm, size in arms:
        run = runs[f"cortex/{arm}/S={size}/seed=0"]
        for group in ("test", "training"):
            found = run[group]
            assert found["gap"] == pytest.approx(found["log_p"] - found["miselbo"], abs=1e-4)
            assert found["own_draws"] > found["miselbo"]
        assert 0 <= run["scores"]["ari"] <= 1
    bounds = {arm: runs[f"cortex/{arm}/S=1/seed=0"]["test"]["miselbo"] for arm, s in arms if s == 1}
    assert len(set(bounds.values())) == 4
    table = report.thinning_tables(runs)
    gained = bounds["thinned"] - bounds["default"]
    row = next(line for line in table.splitlines() if line.startswith("| cortex | 1 | thinned |"))
    assert f"| {gained:+.2f} |" in row
    assert "not run" in table
    report.thinning_figure(runs, tmp_path / "thinning.png")
    assert (tmp_path / "thinning.png").stat().st_size > 0
