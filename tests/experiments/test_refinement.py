"""The refinement experiment on a corner of the data: three stages, one decoder."""

import json
from itertools import product

from scmixvi.experiments import refinement
from scmixvi.experiments._reports import refinement as report


def test_smoke_run_has_every_stage_and_is_reported(tmp_path):
    result = tmp_path / "refinement.json"
    refinement.main(["--smoke", "--result", str(result)])
    runs = json.loads(result.read_text())["runs"]
    cases = list(product(("cortex", "cortex/default"), (1, 4)))
    assert len(runs) == len(cases) * len(refinement.STAGES)
    for model, size in cases:
        before, longer, refined = (
            runs[f"{model}/{stage}/S={size}/seed=0"] for stage in refinement.STAGES
        )
        assert before["n_epochs"] == 0
        assert longer["n_epochs"] == refined["n_epochs"] == 2
        bounds = {run["test"]["miselbo"] for run in (before, longer, refined)}
        assert len(bounds) == 3
        assert 0 < before["scores"]["svm"] <= 1
    report.refinement_figure(runs, tmp_path / "refinement.png")
    text = report.refinement_tables(runs)
    assert "| cortex | 4 |" in text
    assert "| cortex, defaults | 4 | refined |" in text
