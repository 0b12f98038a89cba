"""Training and held-out bounds of single-cell models, shared by the single-cell experiments."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import anndata as ad
import numpy as np
import torch
from scvi.dataloaders import DeviceBackedDataSplitter
from scvi.model import SCVI
from scvi.model._utils import get_max_epochs_heuristic
from torch import Tensor

from scmixvi import MixtureSCVI
from scmixvi.core import jsd, log_mixture, miselbo, siwelbo

State = Mapping[str, Tensor]
Model = TypeVar("Model", bound=SCVI)

# Elements of one likelihood tensor in a pass of `bounds`: 16 MB in float32.
MAX_ELEMENTS = 2**22


@dataclass(frozen=True)
class Training:
    """How a model of the paper is trained; the defaults are the released code's for CORTEX.

    One hidden layer of 128, 10 latents, ZINB, observed library size, no batch norm and dropout
    0.1; Adam at 1e-3; no KL warm-up; up to 1000 epochs, early stopping when the validation bound
    has not improved for 100. As in scvi-tools the last weights are kept, not the best.
    """

    batch_size: int = 512
    max_epochs: int = 1000
    patience: int = 100


class Split(NamedTuple):
    """Indices of training, validation and test cells."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def random_split(n_cells: int, n_train: int, n_validation: int, seed: int) -> Split:
    """Split cells at random; what is left after training and validation is the test set."""
    order = np.random.default_rng(seed).permutation(n_cells)
    parts = np.split(order, [n_train, n_train + n_validation])
    return Split(*(np.sort(part) for part in parts))


def most_variable(adata: ad.AnnData, n_genes: int) -> ad.AnnData:
    """Keep the genes of highest variance of the raw counts, in the order of the data."""
    counts = adata.X.astype(np.float64)
    variance = counts.power(2).mean(axis=0).A1 - np.square(counts.mean(axis=0).A1)
    return adata[:, np.sort(np.argsort(-variance, kind="stable")[:n_genes])].copy()


def quiet() -> None:
    """Silence what scvi-tools and Lightning say about every short training."""
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "scvi"):
        logging.getLogger(name).setLevel(logging.ERROR)


def papers_model(adata: ad.AnnData, n_components: int, state: State | None = None) -> MixtureSCVI:
    """A MixtureSCVI of the paper's architecture, perhaps with weights: then it counts as trained.

    `adata` has been registered by :meth:`scmixvi.MixtureSCVI.setup_anndata`.
    """
    model = MixtureSCVI(adata, n_components=n_components, use_batch_norm="none")
    return model if state is None else with_weights(model, state)


def stock_model(adata: ad.AnnData, state: State) -> MixtureSCVI:
    """scvi-tools' SCVI with these weights, as a mixture of one: the same function of the data."""
    return with_weights(MixtureSCVI(adata, n_components=1), state)


def with_weights(model: Model, state: State) -> Model:
    """Load weights into a new model, which then counts as trained."""
    model.module.load_state_dict(state)
    model.module.eval()
    model.is_trained_ = True
    return model


# ---------------------------------------------------------------- training


def member_seed(seed: int, member: int) -> int:
    """Seed of the initialisation of one member of an ensemble."""
    return int(np.random.SeedSequence([seed, member]).generate_state(1)[0])


def train_mixture(adata: ad.AnnData, split: Split, training: Training, n_components: int) -> dict:
    """Train all S encoders and the decoder jointly; `state` and `n_epochs`."""
    return _fit(papers_model(adata, n_components), split, training)


def train_member(adata: ad.AnnData, split: Split, training: Training, base: State) -> dict:
    """Train one more encoder for an ensemble, against the fixed generative model of `base`."""
    model = papers_model(adata, 1)
    fixed = {name: value for name, value in base.items() if not name.startswith("z_encoder.")}
    model.module.load_state_dict(fixed, strict=False)
    for name, parameter in model.module.named_parameters():
        parameter.requires_grad_(name.startswith("z_encoder."))
    return _fit(model, split, training)


def train_stock(adata: ad.AnnData, split: Split, max_epochs: int | None = None) -> dict:
    """Train :class:`scvi.model.SCVI` with every default: what its users get."""
    SCVI.setup_anndata(adata)
    return train_default(SCVI(adata), split, max_epochs)


def train_default(
    model: SCVI, split: Split, max_epochs: int | None = None, **arguments: Any
) -> dict:
    """Train a model with every default but for further arguments of its `train`."""
    max_epochs = max_epochs or get_max_epochs_heuristic(model.adata.n_obs)  # a datamodule hides it
    data = loader(model, split, 128)
    model.train(max_epochs, datamodule=data, enable_progress_bar=False, **arguments)
    return result(model)


def _fit(model: MixtureSCVI, split: Split, training: Training) -> dict:
    model.train(
        training.max_epochs,
        datamodule=loader(model, split, training.batch_size),
        early_stopping=True,
        early_stopping_monitor="elbo_validation",
        early_stopping_patience=training.patience,
        plan_kwargs={"n_epochs_kl_warmup": None},
        latent_key=None,
        enable_progress_bar=False,
    )
    return result(model)


def loader(model: SCVI, split: Split, batch_size: int) -> DeviceBackedDataSplitter:
    """Batches of dense counts that stay in memory: as scvi-tools' own, but faster."""
    return DeviceBackedDataSplitter(
        model.adata_manager, shuffle=True, batch_size=batch_size, external_indexing=list(split)
    )


def result(model: SCVI) -> dict:
    """Weights of a trained model and for how many epochs it was trained."""
    history = model.history_["elbo_train"]
    return {"state": dict(model.module.state_dict()), "n_epochs": len(history)}


def ensemble(base: State, members: Sequence[State]) -> dict[str, Tensor]:
    """The S = 1 model `base` with further encoders: a mixture whose generative model is `base`'s.

    Ensembles of increasing S are nested: they share their first members.
    """
    encoders = {
        name.replace("z_encoder.", f"z_encoder_{s}.", 1): value
        for s, member in enumerate(members, start=1)
        for name, value in member.items()
        if name.startswith("z_encoder.")
    }
    return {**base, **encoders}


# ---------------------------------------------------------------- held-out bounds


@torch.inference_mode()
def bounds(model: MixtureSCVI, indices: np.ndarray, n_draws: int = 1000) -> dict:
    """Held-out bounds in nats a cell, averaged over cells, all from the same draws.

    Parameters
    ----------
    model
        Uniform weights.
    indices
        Cells.
    n_draws
        Draws a cell, spread evenly over the components (rounded up to a multiple of S), so that
        every S costs the same.

    Returns
    -------
    log_likelihood
        All draws pooled inside one logarithm: the tightest lower bound on log p(x) here.
    log_likelihood_eq17
        One logarithm a component (Eq. 17 of the paper), L = n_draws / S.
    miselbo
        The bound at L = 1, averaged over the draws.
    gap
        log_likelihood - miselbo: what a better posterior could still win. Since log_likelihood is
        itself a lower bound, the variational gap is at least this.
    jsd
        Divergence of the components, 0 to log S.
    """
    per_component = -(-n_draws // model.module.n_components)
    batches = model._make_data_loader(adata=model.adata, indices=indices, batch_size=81)
    columns = [_bounds_of(_log_terms(model.module, batch, per_component)) for batch in batches]
    means = {name: torch.cat([c[name] for c in columns]).mean().item() for name in columns[0]}
    return means | {"gap": means["log_likelihood"] - means["miselbo"]}


def _log_terms(module: torch.nn.Module, tensors: dict, n_draws: int) -> list[Tensor]:
    """Log p(x|z), log p(z) `[L, S, B]` and log q_j(z_s|x) `[L, S, S, B]`, L in several passes."""
    encoded = module.inference(**module._get_inference_input(tensors, full_forward_pass=True))
    a_pass = max(1, MAX_ELEMENTS // (tensors["X"].numel() * module.n_components))
    terms = []
    for start in range(0, n_draws, a_pass):
        drawn = module._draw_stratified(
            encoded["qz"], encoded["ql"], encoded["library"], min(a_pass, n_draws - start)
        )
        inputs = module._get_generative_input(tensors, drawn)
        decoded = module.generative(**inputs, counts=tensors["X"])
        terms.append(module._bound_terms(tensors, drawn, decoded)[:3])
    return [torch.cat(term) for term in zip(*terms, strict=True)]


def _bounds_of(terms: Sequence[Tensor]) -> dict[str, Tensor]:
    log_lik, log_prior, log_q_all = terms
    return {
        "log_likelihood": siwelbo(*terms),
        "log_likelihood_eq17": miselbo(*terms),
        "miselbo": (log_lik + log_prior - log_mixture(log_q_all)).mean((0, 1)),
        "jsd": jsd(log_q_all),
    }
