"""The benchmark of refinement's steps: what it writes, and that both kinds start alike."""

import json

import pytest

from benchmarks import refinement_steps as benchmark


def test_both_kinds_of_steps_close_the_gap_of_the_same_encoders(tmp_path, monkeypatch):
    out = tmp_path / "steps.json"
    words = f"--smoke --seed 3 --result {out}".split()
    benchmark.main(words)
    record = json.loads(out.read_text())
    assert set(record["runs"]) == {f"cortex/S={s}/seed=3" for s in benchmark.COMPONENTS}
    for run in record["runs"].values():
        for name in benchmark.ASCENTS:
            assert run[f"{name}/12 steps"] < run["encoders"]
    monkeypatch.setattr(benchmark, "gaps", pytest.fail)
    benchmark.main(words)
    assert json.loads(out.read_text()) == record
