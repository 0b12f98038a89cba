"""MixtureSCVI on a GPU: the same loss as on the CPU, and files that move between the two."""

import numpy as np
import pytest
import scvi
import torch
from torch._dynamo.utils import counters

from counts import make_adata
from scmixvi import MixtureSCVI
from scmixvi.singlecell._parts.likelihoods import log_likelihood

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
OPTIONS = [
    {},
    {"gene_likelihood": "nb"},
    {"dispersion": "gene-cell"},
    {"dispersion": "gene-batch"},
    {"mixture_weights": "amortized"},
    {"use_observed_lib_size": False},
    {"n_importance_samples": 2},
]


def make(**arguments):
    adata = make_adata()
    MixtureSCVI.setup_anndata(adata, batch_key="batch")
    return MixtureSCVI(adata, n_hidden=16, n_latent=3, n_components=3, **arguments)


@pytest.mark.parametrize("arguments", OPTIONS, ids=str)
def test_log_ratios_are_those_of_the_cpu(arguments):
    """Same weights, same draws: every importance weight agrees."""
    model = make(**arguments)
    batch = next(iter(model._make_data_loader(adata=model.adata, batch_size=1000)))
    ratios = []
    u = torch.randn(6, 60, 3)
    for device in ("cpu", "cuda"):
        module = model.module.to(device).eval()
        tensors = {k: None if v is None else v.to(device) for k, v in batch.items()}
        inference, _, _ = module(tensors)
        outputs = inference | {
            "z": u.to(device),
            "library": tensors["X"].sum(1, keepdim=True).log().expand(6, -1, -1),
        }
        px = module.generative(**module._get_generative_input(tensors, outputs))["px"]
        log_lik = px.log_prob(tensors["X"]).sum(-1)
        log_q = inference["qz"].log_prob(u.to(device)).squeeze(-1)
        ratios.append((log_lik - log_q).detach().cpu())
    torch.testing.assert_close(ratios[1], ratios[0], rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("arguments", OPTIONS, ids=str)
def test_a_step_s_likelihood_and_gradients_are_those_of_the_cpu(arguments):
    """The CPU's compiled pass against the formulas that a GPU takes, at the same draws."""
    model = make(**arguments)
    batch = next(iter(model._make_data_loader(adata=model.adata, batch_size=1000)))
    z, found = torch.randn(6, 60, 3), []
    for device in ("cpu", "cuda"):
        module = model.module.to(device).eval()
        module.zero_grad()
        tensors = {k: None if v is None else v.to(device) for k, v in batch.items()}
        library = tensors["X"].sum(1, keepdim=True).log().expand(6, -1, -1)
        inputs = module._get_generative_input(tensors, {"z": z.to(device), "library": library})
        decoded = module.generative(**inputs, counts=tensors["X"])
        value = log_likelihood(decoded["px"], tensors["X"], decoded["px_r"])
        value.sum().backward()
        grads = [p.grad.flatten().cpu() for p in module.decoder.parameters() if p.grad is not None]
        found.append((value.detach().cpu(), torch.cat(grads)))
    (cpu, cpu_gradient), (gpu, gpu_gradient) = found
    torch.testing.assert_close(gpu, cpu, rtol=1e-4, atol=1e-2)
    assert (gpu_gradient - cpu_gradient).norm() <= 1e-3 * cpu_gradient.norm()


@pytest.mark.parametrize("arguments", OPTIONS, ids=str)
def test_trains_on_cuda_and_loads_on_the_cpu(tmp_path, arguments):
    model = make(**arguments)
    model.train(3, accelerator="gpu", devices=1, enable_progress_bar=False)
    assert model.device.type == "cuda"
    latent = model.adata.obsm["X_mix"]
    assert np.isfinite(latent).all()
    model.save(tmp_path / "model")
    loaded = MixtureSCVI.load(tmp_path / "model", make_adata(), accelerator="cpu")
    assert loaded.device.type == "cpu"
    np.testing.assert_allclose(loaded.get_latent_representation(), latent, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_precisions_stay_finite(precision):
    model = make()
    model.train(3, accelerator="gpu", devices=1, precision=precision, enable_progress_bar=False)
    assert np.isfinite(float(model.get_elbo()))


def test_encoders_are_refined_there():
    model = make()
    model.train(1, accelerator="gpu", devices=1, latent_key=None, enable_progress_bar=False)
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    model.refine_encoders(1, accelerator="gpu", devices=1, enable_progress_bar=False)
    after = model.module.state_dict()
    assert torch.equal(before["px_r"], after["px_r"])
    name = "z_encoder.mean_encoder.weight"
    assert not torch.equal(before[name], after[name])
    assert np.isfinite(model.adata.obsm["X_mix"]).all()


def test_gaps_are_those_of_the_cpu():
    model = make()
    model.train(1, accelerator="gpu", devices=1, latent_key=None, enable_progress_bar=False)
    cells = np.arange(20)
    there = model.get_variational_gap(indices=cells, progress=False)
    model.to_device("cpu")
    here = model.get_variational_gap(indices=cells, progress=False)
    np.testing.assert_allclose(there["log_likelihood"], here["log_likelihood"], atol=0.5)
    assert there["miselbo"].mean() == pytest.approx(here["miselbo"].mean(), abs=1.0)


@pytest.mark.parametrize("observed", [None, False])
def test_exact_posteriors_are_those_of_the_cpu(observed):
    model = make()
    model.train(1, accelerator="gpu", devices=1, latent_key=None, enable_progress_bar=False)
    asked = {"indices": np.arange(20), "n_samples": 400, "progress": False}
    asked |= {"use_observed_lib_size": observed}
    there = model.get_posterior_samples(**asked)
    model.to_device("cpu")
    here = model.get_posterior_samples(**asked)
    error = here.std(axis=0) / 10
    assert (np.abs(there.mean(axis=0) - here.mean(axis=0)) < 5 * error + 0.02).mean() > 0.95


def test_posteriors_of_cells_are_refined_there():
    model = make()
    model.train(1, accelerator="gpu", devices=1, latent_key=None, enable_progress_bar=False)
    before = model.get_variational_gap(progress=False)["gap"].mean()
    after = model.get_variational_gap(n_refinement_steps=100, progress=False)["gap"].mean()
    assert after < before
    there = model.get_latent_representation(n_refinement_steps=100)
    model.to_device("cpu")
    here = model.get_latent_representation(n_refinement_steps=100)
    scale = here.std(axis=0)
    assert np.abs((there - here) / scale).mean() < 0.3


def test_a_recorded_step_trains_as_one_that_is_not():
    """The history is of every step's own losses, whose memory the next step writes into."""
    recorded = {"compile": True, "compile_kwargs": {"mode": "reduce-overhead"}}
    found = []
    for plan in ({}, recorded):
        torch.compiler.reset()
        counters.clear()
        scvi.settings.seed = 0
        model = make(dropout_rate=0.0)
        model.train(
            20,
            accelerator="gpu",
            devices=1,
            batch_size=16,  # so that a step comes before the last one's loss is looked at
            plan_kwargs={"n_epochs_kl_warmup": 0, **plan},
            latent_key=None,
            enable_progress_bar=False,
        )
        found.append(model.history["elbo_train"].to_numpy(float).ravel())
    assert counters["stats"]["unique_graphs"] > 0, "scvi-tools lets torch go on without compiling"
    assert not counters["graph_break"]
    assert counters["inductor"]["cudagraph_skips"] == 0
    np.testing.assert_allclose(found[1], found[0], rtol=0.05)
