"""The benchmark of fast and plain training: that the plain path is plain, and what is written."""

import json

import pytest
import torch

from benchmarks import same_bounds as benchmark
from counts import make_adata
from scmixvi import MixtureSCVI
from scmixvi.singlecell._training.plan import MixtureTrainingPlan


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


@pytest.mark.parametrize("n_components", [1, 4])
def test_a_step_is_the_same_by_both_paths(n_components):
    """At the size of cortex, with the same weights and noise: loss to 1e-5, gradients to 1e-4."""
    adata = make_adata(n_cells=128, n_genes=1200)
    MixtureSCVI.setup_anndata(adata, batch_key="batch")
    torch.manual_seed(0)
    # Dropout draws for all components at once or for one after the other: other noise.
    model = MixtureSCVI(adata, n_components=n_components, dropout_rate=0.0)
    module = model.module.train()

    def step():
        module.zero_grad()
        batch = next(iter(model._make_data_loader(adata=adata, shuffle=False)))
        torch.manual_seed(1)
        loss = module(batch)[2].loss
        loss.backward()
        grads = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
        return loss.item(), grads

    fast_loss, fast = step()
    with benchmark.plain_path():
        plain_loss, plain = step()
    assert fast_loss == pytest.approx(plain_loss, rel=1e-5)
    assert fast.keys() == plain.keys()
    for name, gradient in plain.items():
        if name.endswith("fc_layers.Layer 0.0.bias"):
            continue  # batch norm takes off what a bias adds: exactly 0 but for rounding
        assert (fast[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


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
