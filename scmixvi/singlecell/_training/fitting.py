"""Training a MixtureSCVI, and refining its encoders."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pandas as pd
from scvi import REGISTRY_KEYS
from scvi.data._constants import ADATA_MINIFY_TYPE
from scvi.model._utils import get_max_epochs_heuristic
from torch import nn

from scmixvi._messages import check_whole, is_whole
from scmixvi.core.memory import freed_memory_kept
from scmixvi.singlecell._checks.arguments import check_batch_size
from scmixvi.singlecell._checks.data import check_counts
from scmixvi.singlecell._checks.training import (
    check_latent_key,
    check_plan,
    check_precision,
    check_split,
    named_arguments,
    with_kl_warmup,
)
from scmixvi.singlecell._exchange.storage import has_latents, store_latents
from scmixvi.singlecell._parts.depth import check_prior_widths
from scmixvi.singlecell._training.refinement import (
    REFINEMENT_SHARE,
    EncoderRefinement,
    encoders_alone,
    own_split,
)

logger = logging.getLogger(__name__)


class Fitting:
    """Methods of :class:`~scmixvi.MixtureSCVI` that change its weights."""

    def train(self, *args: Any, latent_key: str | None = "X_mix", **kwargs: Any) -> None:
        """Train by MISELBO and store the latents in `adata.obsm[latent_key]`.

        The KL weight rises from 0 to 1 over the first quarter of the epochs (of the steps, where
        `max_steps` is given without `max_epochs`), unless `plan_kwargs` or `plan_config` says
        otherwise (`n_epochs_kl_warmup`, `n_steps_kl_warmup`); scvi-tools' 400 epochs would never
        reach 1 on most data sets. Where `max_time` ends training sooner, choose one yourself. A
        model that is trained already, or comes from a trained SCVI, goes on at weight 1. Data
        minified with counts can be trained on, as in scvi-tools; the posteriors that they hold stay
        those of before until :meth:`minify_adata` is called again.

        Parameters
        ----------
        *args, **kwargs
            As in :meth:`scvi.model.SCVI.train`.
        latent_key
            Where to store :meth:`get_latent_representation`, replacing what is there; None leaves
            adata alone, and latents of an earlier training under another key stay. With an
            `AnnCollection` without `obsm` of its own it is the `obsm` of each of its parts.

        Raises
        ------
        AttributeError
            If the model has no data of its own, and there is no datamodule.
        ValueError
            If the data are minified without counts, if `latent_key` is neither None nor a non-empty
            string without a slash, if `max_epochs` or `batch_size` is not a whole number of at
            least 1, if there are too few cells to set any apart, or none to validate by where
            `check_val_every_n_epoch` asks for it, if `external_indexing` names cells that are not
            there, if a minibatch has one cell and the model batch norm, if the counts are negative
            or a cell has none, if continuous covariates or size factors are not finite, or size
            factors not above 0, if `precision` changes the type of the weights, if `plan_kwargs` or
            `plan_config` holds an unknown option, or if the loss is no longer finite.
        """
        check_latent_key(latent_key)
        has_adata, was_trained = self._own is not None, self.is_trained_
        arguments = named_arguments(super().train, args, kwargs)
        self._check_training(arguments)
        arguments["plan_kwargs"] = with_kl_warmup(
            arguments.get("plan_kwargs"),
            arguments.get("plan_config"),
            arguments.get("max_epochs") or self._default_max_epochs(arguments),
            was_trained,
            _steps_alone(arguments),
        )
        earlier = dict(self.history or {})
        if not self.history:
            # scvi-tools adds to the history of a trained model: where there is none (the model
            # comes from a trained SCVI, or had another logger) it would record nothing.
            self.is_trained_ = False
        weights = _sums(self.module) if was_trained else []
        try:
            with _in_training_mode(self.module), freed_memory_kept():
                result = super().train(**arguments)
        except BaseException:
            has_stored = was_trained and has_adata and has_latents(self.adata, latent_key)
            if has_stored and _sums(self.module) != weights:
                logger.warning(
                    "training was stopped: adata.obsm[%r] holds the latents of before, "
                    "get_latent_representation() has those of the model as it is now.",
                    latent_key,
                )
            raise
        finally:
            self.is_trained_ = self.is_trained_ or was_trained
        self._number_epochs(earlier)
        if latent_key is not None and has_adata:
            store_latents(self.adata, latent_key, self.get_latent_representation())
            logger.info("stored the latents in adata.obsm[%r]", latent_key)
        return result

    def _number_epochs(self, earlier: dict[str, pd.DataFrame]) -> None:
        """Add a later training's metrics to those of before, by the numbers of their epochs.

        scvi-tools numbers rows instead, which not every epoch has of validation, and drops what the
        first training had not. Its first versions overwrite what the logger holds: there all that
        is known of rows is that they are of this training.
        """
        found = getattr(self.trainer.logger, "history", None)
        if not earlier or not isinstance(found, dict):
            return
        by_epoch = {key: frame for key, frame in found.items() if frame.index.name == "epoch"}
        ends = [e.index.max() + 1 for e in earlier.values() if len(e) and e.index.name == "epoch"]
        start = max(ends, default=0)
        shared = [frame.index.min() for key, frame in by_epoch.items() if key in earlier]
        is_whole = min(shared, default=0) == 0  # metrics of training begin with epoch 0
        for key, frame in by_epoch.items():
            before = earlier.get(key)
            epochs = frame.index if before is None or is_whole else range(len(frame))
            rows = frame.set_axis([start + epoch for epoch in epochs])
            self.history_[key] = pd.concat([before, rows]).rename_axis("epoch")
        self.history_ = {**found, **self.history_}

    def refine_encoders(self, *args: Any, latent_key: str | None = "X_mix", **kwargs: Any) -> None:
        r"""Train the encoders on, alone, so that they explain cells that they have not seen.

        Encoders explain held-out cells worse than those they were trained on. Here a random share
        of every cell's counts is drawn anew from the model in each step,

        .. math::
            x'_g \sim p(x_g | z) \text{ with probability } p, \text{ else } x'_g = x_g,
            \qquad z \sim q(z | x), \; p \sim U(0, 1),

        and the encoders learn to bound log p(x'). Decoder, dispersions and with them log p(x) of
        every cell stay as they are; dropout is off and batch norm keeps its statistics. Training
        and validation cells are those of the training before, unless the arguments choose others.
        The epochs' metrics are in :attr:`refinement_history`: those of training are of resampled
        cells, those of validation of cells as they are.

        Parameters
        ----------
        *args, **kwargs
            As in :meth:`train`; `max_epochs` is by default a quarter of what it is there.
        latent_key
            As in :meth:`train`.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If the likelihood is "normal", which has no counts to draw, if the encoder weights are
            frozen, if the data are minified, with counts or without, or as in :meth:`train`.

        Examples
        --------
        >>> scvi_model.train()
        >>> model = scmixvi.MixtureSCVI.from_scvi_model(scvi_model, n_components=1)
        >>> model.refine_encoders()  # the same decoder, its encoder refined

        References
        ----------
        Zhang, Hayes and Barber 2022, "Generalization gap in amortized inference".
        """
        self._check_if_trained(
            warn=False,
            message="refine_encoders improves the encoders of a trained model: call train() first.",
        )
        if self.module.gene_likelihood == "normal":
            raise ValueError(
                "refine_encoders draws counts from the model, and gene_likelihood='normal' has "
                "none: use 'zinb', 'nb' or 'poisson'."
            )
        if self.minified_data_type is not None:
            raise ValueError(
                "the data are minified, and hold the posteriors that the encoders gave before: "
                "load the model with the full data to refine them."
            )
        arguments = own_split(self, named_arguments(super().train, args, kwargs))
        if arguments.get("max_epochs") is None:
            whole = self._default_max_epochs(arguments)
            arguments["max_epochs"] = whole and max(1, round(REFINEMENT_SHARE * whole))
        history, self.history_ = self.history_, self.refinement_history
        self._training_plan_cls = EncoderRefinement
        try:
            with encoders_alone(self.module):
                self.train(**arguments, latent_key=latent_key)
        finally:
            del self._training_plan_cls
            self.refinement_history_, self.history_ = self.history_ or None, history

    @property
    def refinement_history(self) -> dict[str, pd.DataFrame] | None:
        """Metrics of every epoch of :meth:`refine_encoders`, as `history`; None without any."""
        return getattr(self, "refinement_history_", None)

    def _default_max_epochs(self, arguments: dict) -> int | None:
        source = arguments.get("datamodule") or self._own
        n_obs = getattr(source, "n_obs", None)
        return None if n_obs is None else get_max_epochs_heuristic(n_obs)

    def _check_training(self, arguments: dict[str, Any]) -> None:
        """Raise what :meth:`train` raises before its first step; numbers become Python's own."""
        if self._own is not None:
            self._check_registered_data()
        elif arguments.get("datamodule") is None:
            raise AttributeError(  # as scvi-tools
                "the model has no data of its own: train it with a datamodule, datamodule=..., or "
                "make one with adata."
            )
        check_precision(arguments)
        plan = arguments.get("plan_kwargs"), arguments.get("plan_config")
        check_plan(self._training_plan_cls, *plan)
        if arguments.get("max_epochs") is not None:
            check_whole("max_epochs", arguments["max_epochs"])
            arguments["max_epochs"] = int(arguments["max_epochs"])  # Lightning takes no numpy's
        if "batch_size" in arguments:
            arguments["batch_size"] = check_batch_size(arguments["batch_size"])
        if self._own is not None:
            check_split(self._own.n_obs, arguments)

    def _check_registered_data(self) -> None:
        """Raise for counts, covariates and size factors that cannot be trained on."""
        if self.minified_data_type == ADATA_MINIFY_TYPE.LATENT_POSTERIOR:
            # scvi-tools says so only after a step has changed the statistics of batch norm.
            error = ValueError("The VAE.loss function currently does not support minified data.")
            error.add_note("Train before minify_adata, or load the model with the full data.")
            raise error
        self._check_own_genes()
        self._check_registered_numbers()
        if self.module is not None and not self.module.use_observed_lib_size:
            check_prior_widths(self.module.library_log_vars, self.adata_manager)
        if not self._takes_counts:
            return
        counts = self.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY)
        check_counts(counts, self._needs_library)


def _sums(module: nn.Module | None) -> list[float]:
    """The sum of every tensor of a module: other ones after a step of training."""
    state = {} if module is None else module.state_dict()
    return [float(tensor.sum()) for tensor in state.values()]


def _steps_alone(arguments: dict[str, Any]) -> int | None:
    """`max_steps` where the arguments name no number of epochs, and it is no "any number" (-1)."""
    steps = arguments.get("max_steps", -1)
    is_limit = arguments.get("max_epochs") is None and is_whole(steps)
    return int(steps) if is_limit else None


@contextmanager
def _in_training_mode(module: nn.Module | None) -> Iterator[None]:
    """Train a module that has no frozen weights in training mode; put it back after an error.

    Lightning keeps the mode it finds, and a trained or loaded module is in evaluation mode: without
    this a second training would run without dropout or batch statistics. A query model (scArches)
    stays as scvi-tools leaves it: statistics of a batch would cancel the covariate's weights, which
    are all that it trains.
    """
    if module is None or not all(p.requires_grad for p in module.parameters()):
        yield
        return
    was_training = module.training
    module.train()
    try:
        yield
    except BaseException:
        module.train(was_training)
        raise
