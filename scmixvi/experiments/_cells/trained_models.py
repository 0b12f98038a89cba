"""Single-cell models of the experiments, each trained once: the paper's and with defaults."""

from argparse import Namespace
from functools import partial
from typing import Any

import anndata as ad
import torch

from scmixvi import MixtureSCVI
from scmixvi.experiments._cells import training as singlecell
from scmixvi.experiments._cells.training import Split, Training
from scmixvi.experiments._common import trained


class TrainedModels:
    """Models on one data set, trained when they are asked for and only once.

    Mixtures and ensembles have the paper's architecture and training.

    Parameters
    ----------
    arguments
        As from :func:`scmixvi.experiments._common.parse`: the seed, and where weights are kept.
    adata, split, training
        The data, their split, and how a model is trained.
    prefix
        Of the names under which weights are kept.
    """

    def __init__(
        self,
        arguments: Namespace,
        adata: ad.AnnData,
        split: Split,
        training: Training,
        prefix: str = "",
    ) -> None:
        self.arguments, self.adata, self.split = arguments, adata, split
        self.training, self.prefix = training, prefix

    def mixture(self, size: int) -> tuple[MixtureSCVI, int]:
        """A mixture of so many encoders, and the epochs it was trained for."""
        weights = self._mixture(size)
        return singlecell.papers_model(self.adata, size, weights["state"]), weights["n_epochs"]

    def ensemble(self, size: int) -> tuple[MixtureSCVI, int]:
        """The S = 1 model with further encoders, and the epochs of all of them."""
        base, members = self._mixture(1), [self._member(n) for n in range(2, size + 1)]
        state = singlecell.ensemble(base["state"], [m["state"] for m in members])
        n_epochs = base["n_epochs"] + sum(m["n_epochs"] for m in members)
        return singlecell.papers_model(self.adata, size, state), n_epochs

    def default(self, size: int) -> tuple[MixtureSCVI, int]:
        """MixtureSCVI with its own defaults, and the epochs it was trained for."""
        return self.by_default(f"default/S={size}", None, n_components=size)

    def longer(self, max_epochs: int, use_batch_norm: str) -> tuple[MixtureSCVI, int]:
        """One encoder with the defaults, but for the number of epochs and where batch norm is."""
        name = f"longer/{max_epochs} epochs, batch norm {use_batch_norm}"
        options = {"n_components": 1, "use_batch_norm": use_batch_norm}
        return self.by_default(name, max_epochs, **options)

    def by_default(
        self, name: str, max_epochs: int | None, **options: Any
    ) -> tuple[MixtureSCVI, int]:
        """The defaults but for these options; its weights are kept under that name."""

        def train() -> dict:
            model = MixtureSCVI(self.adata, **options)
            epochs = 2 if self.arguments.smoke else max_epochs
            return singlecell.train_default(model, self.split, epochs, latent_key=None)

        weights = trained(self.arguments, f"{self.prefix}{name}", train)
        model = MixtureSCVI(self.adata, **options)
        return singlecell.with_weights(model, weights["state"]), weights["n_epochs"]

    def _mixture(self, size: int) -> dict:
        train = partial(singlecell.train_mixture, self.adata, self.split, self.training, size)
        return trained(self.arguments, f"{self.prefix}mixture/S={size}", train)

    def _member(self, number: int) -> dict:
        base = self._mixture(1)["state"]

        def train() -> dict:
            torch.manual_seed(singlecell.member_seed(self.arguments.seed, number))
            return singlecell.train_member(self.adata, self.split, self.training, base)

        return trained(self.arguments, f"{self.prefix}member={number}", train)
