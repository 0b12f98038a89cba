"""A module that torch compiles: one graph, and the loss and gradients of the module as it is."""

import warnings

import pytest
import torch

OPTIONS = {
    "defaults": {},
    "one component": {"n_components": 1},
    "nb, two samples": {"gene_likelihood": "nb", "n_importance_samples": 2},
    "poisson, s2a": {"gene_likelihood": "poisson", "estimator": "s2a", "n_drawn": 2},
    "trunk, dispersion of batches": {"encoder_sharing": "trunk", "dispersion": "gene-batch"},
    "amortized weights": {"mixture_weights": "amortized", "use_batch_norm": "none"},
    "thinning": {"thinning_rate": 0.9},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_step_is_one_graph_with_the_same_loss_and_gradients(
    name, make_model, first_batch, monkeypatch
):
    """One graph is what a GPU can record and repeat; a break would end it without a word."""
    # Loops that numba compiles draw other numbers than torch, of the same law.
    for loop in ("thinning", "dropout"):
        monkeypatch.setattr(f"scmixvi.singlecell._loops.{loop}.available", lambda: False)
    model = make_model(batch_key="batch", **({"n_components": 3} | OPTIONS[name]))
    module, batch = model.module.train(), first_batch(model)
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="eager", fullgraph=True, dynamic=False)
    found = [loss_and_gradients(call, module, batch) for call in (module, compiled)]
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def loss_and_gradients(call, module, batch):
    torch.manual_seed(3)
    module.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        loss = call(batch, loss_kwargs={"kl_weight": 1.0})[2].loss
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in module.parameters() if p.grad is not None)]
