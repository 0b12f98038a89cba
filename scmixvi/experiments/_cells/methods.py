"""The data sets and methods of the integration experiment; every model is trained once."""

from argparse import Namespace
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import anndata as ad
import numpy as np
import torch
from scvi.model import SCVI
from scvi.model._utils import get_max_epochs_heuristic

from scmixvi import MixtureSCVI, datasets
from scmixvi.experiments._cells import biology
from scmixvi.experiments._cells import training as singlecell
from scmixvi.experiments._common import prepare, trained
from scmixvi.singlecell._checks.training import with_kl_warmup

LABEL, BATCH = "cell_type", "batch"
N_COMPONENTS = 4
BATCH_SIZE = 128  # the default of scvi-tools


@dataclass(frozen=True)
class Protocol:
    """Sizes of the experiment."""

    max_epochs: int | None = None
    n_cells: int | None = None
    n_splits: int = 5
    n_draws: int = 100
    n_top: int = 50


def cortex() -> ad.AnnData:
    """Seven types, no batches."""
    return datasets.cortex()


def sc_mixology() -> ad.AnnData:
    """Five cell lines, five batches, the 1200 genes of highest variance."""
    return singlecell.most_variable(datasets.sc_mixology(), 1200)


def pbmc68k(n_cells: int | None = None) -> ad.AnnData:
    """Ten types, no batches; some cells of the three largest types for a smoke run."""
    adata = datasets.pbmc68k()
    adata.obs[LABEL] = adata.obs["bulk_labels"].astype(str)
    if n_cells is None:
        return adata
    largest = adata.obs[LABEL].value_counts().index[:3]
    return adata[adata.obs[LABEL].isin(largest)][:n_cells, :60].copy()


DATA = {"pbmc68k": pbmc68k, "sc_mixology": sc_mixology, "cortex": cortex}


def data_sets(protocol: Protocol, names: Iterable[str] = tuple(DATA)) -> dict[str, Callable]:
    """Name to what loads a data set; a smoke run has a corner of pbmc68k alone."""
    if protocol.n_cells is not None:
        return {"pbmc68k": partial(pbmc68k, protocol.n_cells)}
    return {name: DATA[name] for name in names}


@dataclass
class Fitted:
    """What a method knows about a data set; models are SCVIs or mixtures, none for PCA."""

    adata: ad.AnnData
    models: list[SCVI]
    embedding: np.ndarray
    held_out: np.ndarray


def register(cls: type[SCVI], adata: ad.AnnData) -> None:
    """Tell scvi-tools about the counts, and the batches where there are any."""
    cls.setup_anndata(adata, batch_key=BATCH if BATCH in adata.obs else None)


class Methods:
    """The methods on one data set; every model is trained once and kept in a file."""

    def __init__(
        self, arguments: Namespace, name: str, adata: ad.AnnData, protocol: Protocol
    ) -> None:
        self.arguments, self.name, self.adata, self.protocol = arguments, name, adata, protocol
        self._found: dict[str, Fitted] = {}

    def __call__(self, method: str) -> Fitted:
        """Fit a method, or find it fitted."""
        if method not in self._found:
            self._found[method] = getattr(self, method)()
        prepare(self.arguments.seed)
        return self._found[method]

    def pca(self) -> Fitted:
        """Principal components; there is nothing held out."""
        embedding = biology.principal_components(self.adata, self.arguments.seed)
        return Fitted(self.adata, [], embedding, np.arange(0))

    def scvi(self) -> Fitted:
        """The first member of the ensemble."""
        return self._alone(self._model(SCVI, 0))

    def ensemble(self) -> Fitted:
        """SCVIs that differ in their initialisation; the same cells are held out for all."""
        first = self("scvi")
        models = [*first.models, *(self._model(SCVI, i) for i in range(1, N_COMPONENTS))]
        latent = np.concatenate([m.get_latent_representation() for m in models], axis=1)
        return Fitted(self.adata, models, latent, first.held_out)

    def warmup(self) -> Fitted:
        """SCVI with the KL warm-up of MixtureSCVI."""
        return self._alone(self._model(SCVI, 0, short_warmup=True))

    def mixture(self) -> Fitted:
        """MixtureSCVI and its mean."""
        return self._alone(self._model(MixtureSCVI, 0))

    def one(self) -> Fitted:
        """MixtureSCVI with a single encoder: what its training does without a mixture."""
        return self._alone(self._model(MixtureSCVI, 0, n_components=1))

    def components(self) -> Fitted:
        """The same model, its component means."""
        fitted = self("mixture")
        latent = fitted.models[0].get_latent_representation(representation="components")
        return Fitted(self.adata, fitted.models, latent, fitted.held_out)

    def _alone(self, model: SCVI) -> Fitted:
        """One model and its default latents."""
        latent = model.get_latent_representation()
        return Fitted(self.adata, [model], latent, model.validation_indices)

    def _model(
        self,
        cls: type[SCVI],
        member: int,
        n_components: int = N_COMPONENTS,
        short_warmup: bool = False,
    ) -> SCVI:
        """A model trained on the cells that are not held out, the same for all methods."""
        n_held_out = round(0.1 * self.adata.n_obs)
        split = singlecell.random_split(
            self.adata.n_obs, self.adata.n_obs - n_held_out, n_held_out, self.arguments.seed
        )
        sizes = {"n_components": n_components} if cls is MixtureSCVI else {}

        def train() -> dict[str, Any]:
            if member:
                torch.manual_seed(singlecell.member_seed(self.arguments.seed, member))
            register(cls, self.adata)
            model = cls(self.adata, **sizes)
            keep = {"latent_key": None} if cls is MixtureSCVI else {}
            # scvi-tools' own default, which it cannot find when a datamodule is given
            epochs = self.protocol.max_epochs or get_max_epochs_heuristic(self.adata.n_obs)
            plan = with_kl_warmup(None, None, epochs, is_trained=False) if short_warmup else None
            model.train(
                epochs,
                datamodule=singlecell.loader(model, split, BATCH_SIZE),
                plan_kwargs=plan,
                enable_progress_bar=False,
                **keep,
            )
            return singlecell.result(model)

        kind = cls.__name__ if n_components == N_COMPONENTS else f"{cls.__name__}, S={n_components}"
        kind += ", short warm-up" if short_warmup else ""
        name = f"{self.name}/{kind}/member={member}"
        state = trained(self.arguments, name, train)["state"]
        register(cls, self.adata)
        model = singlecell.with_weights(cls(self.adata, **sizes), state)
        model.train_indices_, model.validation_indices_ = split.train, split.validation
        return model
