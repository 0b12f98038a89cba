"""How many operations a training step has: what a GPU launches one by one, and Python waits for."""

from collections import Counter

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from scmixvi.core import products

OPTIONS = {
    "defaults": {},
    "two layers, nb": {"n_layers": 2, "gene_likelihood": "nb"},
    "layer norm": {"use_batch_norm": "none", "use_layer_norm": "encoder"},
    "weights": {"mixture_weights": "amortized"},
    "trunk": {"encoder_sharing": "trunk"},
    "thinning": {"thinning_rate": 0.9},
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


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled pass", "formulas"])
@pytest.mark.parametrize(
    ("name", "numbers"),
    # A trunk drops weights in the place of hidden units where components are many.
    [*((name, (3, 6)) for name in OPTIONS), ("trunk", (13, 30))],
    ids=[*OPTIONS, "trunk, many"],
)
def test_more_components_are_no_more_operations(
    name, numbers, compiled, make_model, first_batch, monkeypatch
):
    for part in ("decoded", "draws"):
        monkeypatch.setattr(f"scmixvi.singlecell._parts.{part}.available", lambda: compiled)
    # All rows at a time, as a GPU takes them.
    monkeypatch.setattr("scmixvi.singlecell._parts.likelihoods._chunk", lambda mu: mu.shape[:2])
    products.onednn_is_faster()  # it tries once
    few, many = Counting(), Counting()
    for counting, n_components in zip((few, many), numbers, strict=True):
        model = make_model(batch_key="batch", n_components=n_components, **OPTIONS[name])
        module, batch = model.module.train(), first_batch(model)
        with counting:
            module(batch, loss_kwargs={"kl_weight": 0.5})[2].loss.backward()
    assert few.found == many.found
    assert few.found.total() > 50
