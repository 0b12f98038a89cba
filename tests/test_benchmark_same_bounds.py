"""The benchmark of fast and plain training: that the plain path is plain, and what is written."""

import json

import pytest
import torch

from benchmarks import same_bounds as benchmark
from counts import make_adata
from scmixvi import MixtureSCVI
from scmixvi.singlecell._training import MixtureTrainingPlan


def test_the_plain_path_is_plain_and_over_afterwards():
    adata = make_adata()
    MixtureSCVI.setup_anndata(adata)
    model = MixtureSCVI(adata, n_components=2)
    batch = next(iter(model._make_data_loader(adata=adata)))

    def computed():
        return "undecoded" not in vars(model.module(batch)[1]["px"])

    assert not computed()
    with benchmark.plain_path():
        assert computed()
        assert MixtureSCVI._training_plan_cls is not MixtureTrainingPlan
    assert not computed()
    assert MixtureSCVI._training_plan_cls is MixtureTrainingPlan


def test_it_writes_both_paths_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "DATASETS", ("pbmc68k",))
    out = tmp_path / "same.json"
    words = f"--smoke --seed 3 --result {out}".split()
    benchmark.main(words)
    record = json.loads(out.read_text())
    runs = record["runs"]
    assert set(runs) == {
        f"pbmc68k/S={s}/{path}/seed=3" for s in benchmark.COMPONENTS for path in benchmark.TRAINING
    }
    for s in benchmark.COMPONENTS:
        fast, plain, _ = (runs[f"pbmc68k/S={s}/{path}/seed=3"] for path in benchmark.TRAINING)
        assert fast["miselbo"] < fast["log_likelihood"]
        assert fast["miselbo"] == pytest.approx(plain["miselbo"], rel=0.02)
    assert torch.get_float32_matmul_precision() == "highest"
    monkeypatch.setattr(benchmark, "bounds", pytest.fail)
    benchmark.main(words)
    assert json.loads(out.read_text()) == record
