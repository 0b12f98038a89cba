"""The test of monotonicity in its smoke form."""

import json

import numpy as np
import pytest

from counts import make_adata
from scmixvi.experiments import monotone
from scmixvi.experiments._cells import training as _singlecell


def test_smoke_run_has_the_papers_nll_and_resumes(tmp_path, capsys):
    path = tmp_path / "monotone.json"
    monotone.main(["--smoke", "--seed", "1", "--result", str(path)])
    runs = json.loads(path.read_text())["runs"]
    assert set(runs) == {"pbmc68k/S=1/seed=1", "pbmc68k/S=2/seed=1"}
    for run in runs.values():
        assert run["nll"] == -run["log_likelihood_eq17"] > 0
    one, two = runs["pbmc68k/S=1/seed=1"], runs["pbmc68k/S=2/seed=1"]
    assert one["log_likelihood"] == pytest.approx(one["log_likelihood_eq17"], abs=1e-3)
    assert two["log_likelihood"] > two["log_likelihood_eq17"]
    capsys.readouterr()
    monotone.main(["--smoke", "--seed", "1", "--result", str(path)])
    assert capsys.readouterr().out == ""


def test_genes_of_highest_variance_stay_in_order():
    adata = make_adata(50)
    kept = _singlecell.most_variable(adata, 5)
    variance = adata.X.toarray().var(axis=0)
    assert list(kept.var_names) == list(adata.var_names[np.sort(np.argsort(-variance)[:5])])
