"""Small data sets and models for the single-cell tests."""

import logging

import pytest
import scvi
import torch

from counts import make_adata
from scmixvi import MixtureSCVI

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


@pytest.fixture(autouse=True)
def _scvi_seed():
    scvi.settings.seed = 0
    torch.manual_seed(0)


@pytest.fixture
def adata():
    return make_adata()


@pytest.fixture
def make_model(adata):
    """Set up the data and make a small model: keywords go to setup_anndata or to the model."""
    setup_names = {
        "batch_key",
        "labels_key",
        "size_factor_key",
        "categorical_covariate_keys",
        "continuous_covariate_keys",
    }

    def make(cls=MixtureSCVI, data=None, **arguments):
        setup = {k: v for k, v in arguments.items() if k in setup_names}
        model = {k: v for k, v in arguments.items() if k not in setup_names}
        data = adata if data is None else data
        cls.setup_anndata(data, **setup)
        return cls(data, **({"n_hidden": 16, "n_latent": 3} | model))

    return make


@pytest.fixture
def first_batch():
    """All cells of a model's data as one minibatch."""

    def batch(model, n_cells=None):
        loader = model._make_data_loader(adata=model.adata, batch_size=n_cells or 1000)
        return next(iter(loader))

    return batch
