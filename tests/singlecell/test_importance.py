"""Importance-weighted expression: scvi-tools' estimator, one minibatch at a time."""

import numpy as np
import pandas as pd
import pytest
import torch

from counts import QUIET, make_adata
from scmixvi.singlecell._queries import importance as _importance
from scmixvi.singlecell._queries.estimates import Estimates


@pytest.fixture
def paired(monkeypatch):
    """The estimator here and scvi-tools' own, with the same log p(x), draws and choices."""

    def pair(model, **arguments):
        known = torch.linspace(-60.0, -40.0, model.adata.n_obs)
        monkeypatch.setattr(model, "get_marginal_ll", lambda *_, indices, **__: known[indices])
        choose = _importance.choose_anchors

        def then_seed(*args, **kwargs):
            anchors = choose(*args, **kwargs)
            torch.manual_seed(1)
            return anchors

        monkeypatch.setattr(_importance, "choose_anchors", then_seed)
        arguments |= {"weights": "importance", "return_numpy": True, "batch_size": 16}
        found = []
        for method in (model.get_normalized_expression, super(Estimates, model)):
            np.random.seed(2)  # noqa: NPY002  what scvi-tools draws from
            torch.manual_seed(1)
            call = getattr(method, "get_normalized_expression", method)
            found.append(call(**arguments))
        return found

    return pair


SETTINGS = [
    {"n_components": 3},
    {"n_components": 1},
    {"gene_likelihood": "nb", "dispersion": "gene-batch"},
    {"dispersion": "gene-cell", "mixture_weights": "amortized"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("truncation", [False, True])
def test_equal_to_scvi_tools(make_model, paired, settings, truncation):
    model = make_model(batch_key="batch", **settings)
    model.train(1, **QUIET)
    ours, theirs = paired(model, n_samples_overall=130, truncation=truncation)
    assert ours.shape == (130, 23)
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize(
    "arguments",
    [
        {"library_size": "latent"},
        {"library_size": 1e4, "gene_list": ["gene2", "gene5"], "transform_batch": "y"},
        {"indices": np.arange(5, 45)},
        {"max_cells": 20},
    ],
    ids=str,
)
def test_equal_to_scvi_tools_for_every_argument(make_model, paired, arguments):
    model = make_model(batch_key="batch", n_components=2)
    model.train(1, **QUIET)
    ours, theirs = paired(model, n_samples_overall=20, **arguments)
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("size", [{}, {"size_factor_key": "size"}], ids=str)
def test_draws_of_one_cell_are_weighted_by_its_joint_density(make_model, size):
    """For one cell the weight is p(x, z) / p(x) / q(z | x), whose mean under q is 1."""
    model = make_model(n_components=2, **size)
    model.train(1, **QUIET)
    module, cell = model.module, np.array([4])
    with torch.inference_mode():
        anchors = _importance.choose_anchors(model, model.adata, cell)
        (tensors,) = model._make_data_loader(adata=model.adata, indices=cell)
        encoded = module.inference(**module._get_inference_input(tensors), n_samples=50)
        u, px = encoded["u"], module.generative(**module._get_generative_input(tensors, encoded))
        found = _importance.log_importance(
            anchors, u.flatten(0, 1), *_importance._flat(px["px"], px["px_r"], u)
        )
        log_q = encoded["qz"].log_prob(u).squeeze(-1)
        expected = module._log_joint(tensors, encoded | {"library": encoded["library"][0]}, u)
        expected = (expected - log_q).squeeze(-1) - anchors.log_px
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_cells_are_named_and_lists_accepted(make_model):
    model = make_model(n_components=2)
    model.train(1, **QUIET)
    cells = [3, 8, 20]
    drawn = model.get_normalized_expression(
        indices=cells, weights="importance", n_samples_overall=50, n_mc_samples=8
    )
    assert isinstance(drawn, pd.DataFrame)
    assert set(drawn.index) <= set(model.adata.obs_names[cells])
    np.testing.assert_allclose(drawn.sum(axis=1), 1, rtol=1e-5)


def test_without_an_overall_number_weights_do_nothing(make_model):
    model = make_model(n_components=2)
    model.train(1, **QUIET)
    found = []
    for weights in ("importance", "uniform"):
        torch.manual_seed(0)
        found.append(model.get_normalized_expression(weights=weights))
    pd.testing.assert_frame_equal(*found)


def test_several_batches_are_left_to_scvi_tools(make_model):
    model = make_model(batch_key="batch", n_components=2)
    model.train(1, **QUIET)
    with pytest.raises(NotImplementedError, match="averaged across batches"):
        model.get_normalized_expression(weights="importance", transform_batch=["x", "y"])
    for batches in (["x", "y"], np.array(["x", "y"]), pd.Index(["x", "y"])):
        with pytest.raises(NotImplementedError, match="averaged across batches"):
            model.get_normalized_expression(
                n_samples_overall=4, weights="importance", transform_batch=batches
            )
        with pytest.raises(NotImplementedError, match="nor several batches"):
            model.get_normalized_expression(
                n_samples_overall=4, weights="importance_by_cell", transform_batch=batches
            )


def test_draws_are_counted_once_and_of_named_cells(make_model):
    model = make_model(n_components=2)
    model.train(1, **QUIET)
    for weights in (None, "uniform", "importance"):
        with pytest.raises(ValueError, match="n_samples_overall counts draws of all.*give one"):
            model.get_normalized_expression(n_samples_overall=4, n_samples=2, weights=weights)
    with pytest.raises(NotImplementedError, match="'importance' takes no dataloader.*by adata"):
        model.get_normalized_expression(
            dataloader=model._make_data_loader(adata=model.adata),
            n_samples_overall=4,
            weights="importance",
        )


def test_memory_does_not_grow_with_cells_times_anchors(make_model):
    """No tensor holds a gene for every pair of draw and anchor."""
    model = make_model(data=make_adata(n_cells=400), n_components=2)
    model.train(1, **QUIET)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else (result,):
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.untyped_storage().nbytes())
            return result

    limits = {"_ELEMENTS_A_PASS_ON_CPU": 2**14, "_COUNTS_A_PASS_ON_CPU": 2**10}
    with pytest.MonkeyPatch.context() as patch, Watch():
        for name, limit in limits.items():
            patch.setattr(f"scmixvi.singlecell._parts.passes.{name}", limit)
        model.get_normalized_expression(
            weights="importance", n_samples_overall=100, return_numpy=True, n_mc_samples=8
        )
    assert 0 < largest < 4 * 400 * 400 * 23 / 20


def test_weights_that_rest_on_few_draws_are_said_to(caplog):
    """Kish's effective sample size: 1 / sum of squares, here that of 3 equal weights in 1000."""
    few = torch.full((1000,), -100.0)
    few[:3] = 0.0
    with caplog.at_level("WARNING"):
        p = _importance.probabilities(few)
        assert "equivalent of 3 of 1000 draws" in caplog.text
        np.testing.assert_allclose(p[:3], 1 / 3)
        caplog.clear()
        _importance.probabilities(torch.zeros(1000))
        _importance.probabilities(torch.linspace(0.0, 1.0, 60))
        assert not caplog.text
