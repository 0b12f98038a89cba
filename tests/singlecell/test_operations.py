"""How many operations a training step has: what a GPU launches one by one, and Python waits for."""

from collections import Counter

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from counts import make_adata
from scmixvi import MixtureSCVI

OPTIONS = {
    "defaults": {},
    "two layers, nb": {"n_layers": 2, "gene_likelihood": "nb"},
    "layer norm": {"use_batch_norm": "none", "use_layer_norm": "encoder"},
    "weights": {"mixture_weights": "amortized"},
    "trunk": {"encoder_sharing": "trunk"},
}


NOT_COMPUTED = ("aten.detach", "aten.slice", "aten.select")  # views


class Counting(TorchDispatchMode):
    """Counts what torch is asked to compute."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not str(func).startswith(NOT_COMPUTED):
            self.found[str(func)] += 1
        return func(*args, **(kwargs or {}))


def operations(n_components, options):
    adata = make_adata(n_cells=20, n_genes=7)
    MixtureSCVI.setup_anndata(adata, batch_key="batch")
    model = MixtureSCVI(adata, n_components=n_components, n_hidden=8, n_latent=2, **options)
    batch = next(iter(model._make_data_loader(adata=model.adata, batch_size=20)))
    with Counting() as counting:
        model.module.train()(batch, loss_kwargs={"kl_weight": 0.5})[2].loss.backward()
    return counting.found


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled pass", "formulas"])
@pytest.mark.parametrize("name", OPTIONS)
def test_more_components_are_no_more_operations(name, compiled, monkeypatch):
    monkeypatch.setattr("scmixvi.singlecell._decoded.available", lambda: compiled)
    # All rows at a time, as a GPU takes them.
    monkeypatch.setattr("scmixvi.singlecell._likelihoods._chunk", lambda mu: mu.shape[:2])
    few, many = (operations(n, OPTIONS[name]) for n in (3, 13))
    assert few == many
    assert few.total() > 50
