"""Held-out bounds after training by the fast path and by the plain one.

    python -m benchmarks.same_bounds --seed 0

"fast" is MixtureSCVI as it comes. "plain" trains the same model with scvi-tools' own training
plan, optimiser and loader, one encoder after the other, and `log_prob` of scvi-tools'
distributions. "bf16" is the fast path after torch.set_float32_matmul_precision("medium"), by which
a CPU with units for it rounds the factors of matrix products to bf16. All start from the same
weights, split and random state.

One step of "fast" and "plain" agrees to rounding (tests/singlecell/test_module.py); this asks what
is left of that after a hundred epochs. That they can be paired, dropout is torch's in all: the
loop that draws its units by default draws others, of the same law
(tests/singlecell/test_dropout.py). All are scored by the same code, in full precision: MISELBO
(100 draws a cell) and log p(x) (200 draws, pooled) on 15 % of the cells, in nats a cell.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from unittest import mock

import numpy as np
import scvi
import torch
from scvi.train import TrainingPlan

import scmixvi
from benchmarks import RESULTS
from benchmarks.representation import load
from scmixvi.experiments import _common

RESULT = RESULTS / "same_bounds.json"
DATASETS = ("cortex", "sc_mixology", "pbmc68k")
COMPONENTS = (1, 4)
EPOCHS = 100


@contextmanager
def plain_path() -> Iterator[None]:
    """Train as scvi-tools would."""
    with ExitStack() as patches:
        for name, value in (
            ("_parts.decoded.available", lambda: False),
            ("_parts.draws.available", lambda: False),
            ("_training.minibatches.available", lambda: False),
            ("_parts.encoders.can_stack", lambda encoders: False),
            ("_parts.inference.log_of_counts", torch.log1p),
            ("_parts.bound.log_likelihood", lambda px, x, theta: px.log_prob(x).sum(-1)),
        ):
            patches.enter_context(mock.patch(f"scmixvi.singlecell.{name}", value))
        plan = mock.patch.object(scmixvi.MixtureSCVI, "_training_plan_cls", TrainingPlan)
        patches.enter_context(plan)
        yield


@contextmanager
def bf16_products() -> Iterator[None]:
    """Let matrix products of float32 round their factors to bf16, as torch allows it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


TRAINING = {"fast": nullcontext, "plain": plain_path, "bf16": bf16_products}


def bounds(data: str, n_components: int, path: str, seed: int, smoke: bool) -> dict[str, float]:
    """Train one model and score the cells that were held out."""
    adata, _, batch_key = load(data)
    if smoke:
        adata = adata[:200, :50].copy()
    scvi.settings.seed = seed
    scmixvi.MixtureSCVI.setup_anndata(adata, batch_key=batch_key)
    model = scmixvi.MixtureSCVI(adata, n_components=n_components)
    torchs_dropout = mock.patch("scmixvi.singlecell._loops.dropout.available", return_value=False)
    with torchs_dropout, TRAINING[path]():
        model.train(
            max_epochs=2 if smoke else EPOCHS,
            train_size=0.85,
            batch_size=128,
            latent_key=None,
            accelerator="cpu",
            enable_progress_bar=False,
        )
    held_out = model.validation_indices
    n_draws = 100 // n_components
    draws = [float(model.get_elbo(indices=held_out)) for _ in range(2 if smoke else n_draws)]
    log_likelihood = float(model.get_marginal_ll(indices=held_out, n_mc_samples=200))
    return {
        "miselbo": round(float(np.mean(draws)), 4),
        "log_likelihood": round(log_likelihood, 4),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Train and score what the JSON lacks for this seed."""
    options = _common.parse(__doc__, RESULT, argv)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    jobs = {
        f"{data}/S={s}/{path}": partial(bounds, data, s, path, options.seed, options.smoke)
        for data in DATASETS
        for s in COMPONENTS
        for path in TRAINING
    }
    _common.run_missing(options, jobs)


if __name__ == "__main__":
    main()
