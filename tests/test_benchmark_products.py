"""The benchmark of products: both libraries multiply the same matrices, at the step's shapes."""

import json
import sys

import pytest
import torch

from benchmarks import products as benchmark


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN")
def test_both_are_as_exact(tmp_path, monkeypatch):
    result = tmp_path / "products.json"
    options = ["--rounds", "2", "--threads", str(torch.get_num_threads()), "--result", str(result)]
    monkeypatch.setattr(sys, "argv", ["products", *options])
    benchmark.main()
    content = json.loads(result.read_text())
    rows = content["rows"]
    assert len(rows) == 2 * 5
    assert rows[0]["shape"] == [128, 1200, 128]
    assert rows[-1]["shape"] == [128, 512, 1200]
    assert all(0 < error < 1e-3 for row in rows for error in row["largest_error"].values())
    assert len(content["image_mlp"]) == 2 * 2
    assert all(row["milliseconds"]["torch"]["min"] > 0 for row in content["image_mlp"])
