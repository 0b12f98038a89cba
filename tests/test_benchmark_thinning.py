"""The benchmark of thinning: both ways draw by one law, and what is written."""

import json
import sys

import torch

from benchmarks import thinning as benchmark
from counts import make_adata
from scmixvi.singlecell._loops.thinning import thinned


def test_both_ways_draw_by_one_law():
    torch.manual_seed(0)
    x = torch.full((500, 400), 7.0)
    ours, torchs = thinned(x, benchmark.RATE), benchmark.torchs(x)
    for moment in (1, 2):
        cells = [found.pow(moment).mean(1) for found in (ours, torchs)]
        error = sum(c.var() / len(c) for c in cells) ** 0.5
        assert abs(cells[0].mean() - cells[1].mean()) < 4 * error


def test_every_model_is_beside_scvi(tmp_path, monkeypatch):
    result = tmp_path / "thinning.json"
    options = ["--epochs", "1", "--rounds", "1", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["thinning", *options, "--result", str(result)])
    monkeypatch.setattr(benchmark, "load", lambda name, n_cells: (make_adata(), None))
    benchmark.main()
    found = json.loads(result.read_text())
    names = ["SCVI", "S = 1", "S = 4", "S = 1, thinned", "S = 4, thinned"]
    assert [row["model"] for row in found["epochs"]] == names
    assert found["epochs"][0]["ratio"]["median"] == 1
    assert all(row["seconds_an_epoch"]["median"] > 0 for row in found["epochs"])
    assert [row["counts"] for row in found["draws"]] == ["cortex", "synthetic"]
