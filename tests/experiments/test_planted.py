"""Planted changes are where they should be, and recall and false calls are counted right."""

import json
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from scmixvi.experiments import planted
from scmixvi.experiments._reports import planted as _report_planted


@pytest.fixture
def adata():
    rng = np.random.default_rng(0)
    means = np.where(np.arange(50) < 40, 8.0, 0.1)
    counts = csr_matrix(rng.poisson(means, (300, 50)).astype(np.float32))
    labels = np.repeat(["large", "small"], [200, 100])
    return ad.AnnData(counts, obs=pd.DataFrame({"kind": labels}, index=map(str, range(300))))


def test_a_tenth_of_the_expressed_genes_lose_half_their_counts_in_half_the_cells(adata):
    found = planted.plant(adata, "kind", seed=1)
    assert found.genes.sum() == 4
    assert not found.genes[40:].any(), "these are hardly expressed"
    halves = np.concatenate([found.whole, found.thinned])
    assert sorted(halves) == list(range(200))
    before, after = adata.X.toarray(), found.adata.X.toarray()
    changed = np.zeros((300, 50), dtype=bool)
    changed[np.ix_(found.thinned, found.genes.nonzero()[0])] = True
    np.testing.assert_array_equal(after[~changed], before[~changed])
    assert (after[changed] <= before[changed]).all()
    n = float(before[changed].sum())
    assert float(after[changed].sum()) / n == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(n))
    again, other = (planted.plant(adata, "kind", seed).genes for seed in (1, 2))
    np.testing.assert_array_equal(again, found.genes)
    assert (other != found.genes).any()


def test_recall_and_false_calls_are_those_of_the_list(adata):
    """Of four planted genes the test finds three, and one that is not planted."""
    data = planted.plant(adata, "kind", seed=1)
    genes = data.genes.nonzero()[0]
    probability = np.full(50, 0.1)
    probability[[*genes[:3], 45]] = 1.0
    change = np.where(data.genes, 0.8, 0.0)
    table = pd.DataFrame({"proba_de": probability, "lfc_median": change}, data.adata.var_names)
    shuffled = table.sample(frac=1, random_state=0)
    model = SimpleNamespace(differential_expression=lambda **_: shuffled)
    methods = lambda _: SimpleNamespace(models=[model])  # noqa: E731
    found = planted.found(methods, data, "mixture", "uniform")
    assert found["0.05"] == {"recall": 0.75, "false": 0.25}
    assert found["fold_change"] == 0.8
    assert found["n_planted"] == 4
    assert found["auroc"] == pytest.approx((3 * (45 + 0.5) + 22.5) / (4 * 46), abs=0.02)


def test_smoke_run_resumes_and_is_reported(tmp_path, capsys):
    path = tmp_path / "planted.json"
    planted.main(["--smoke", "--result", str(path)])
    runs = json.loads(path.read_text())["runs"]
    names = {f"pbmc68k/{job}/seed=0" for job in _report_planted.COMPARED}
    assert set(runs) == names
    capsys.readouterr()
    planted.main(["--smoke", "--result", str(path)])
    assert capsys.readouterr().out == ""
    text = _report_planted.planted_tables(runs)
    assert f"{runs['pbmc68k/scvi/uniform/seed=0']['auroc']:.3f}" in text
    assert "not run" in text
    _report_planted.planted_figure(runs, tmp_path / "planted.png")
    assert (tmp_path / "planted.png").stat().st_size > 5000
