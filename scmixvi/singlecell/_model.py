"""MixtureSCVI, the model that users meet: SCVI with one more idea."""

import inspect
import logging
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import rich.pretty  # noqa: F401  scvi-tools 1.4 uses it without importing it
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS, settings
from scvi.data._constants import _SETUP_ARGS_KEY, ADATA_MINIFY_TYPE
from scvi.data._utils import _check_if_view, _validate_adata_dataloader_input
from scvi.model import SCVI
from scvi.model._utils import get_max_epochs_heuristic
from scvi.utils import track
from torch import Tensor
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    Normal,
    StudentT,
)

from scmixvi._messages import listing
from scmixvi.singlecell._checks import (
    check_component,
    check_indices,
    check_jitter,
    check_many_components,
    check_mixture_arguments,
    check_scvi_options,
    check_whole,
)
from scmixvi.singlecell._convert import (
    MIXTURE_ARGUMENTS,
    components_from_one,
    data_of,
    of_component,
    one_of_components,
    tell_apart,
    twin,
)
from scmixvi.singlecell._data_checks import (
    check_counts,
    check_covariates,
    check_finite,
    check_groups,
    check_query,
    check_registration,
    check_size_factors,
    counts_of,
)
from scmixvi.singlecell._evidence import N_FINAL, variational_gaps
from scmixvi.singlecell._importance import weighted_expression
from scmixvi.singlecell._loading import DataSplitter, InMemoryLoader
from scmixvi.singlecell._module import MixtureVAE
from scmixvi.singlecell._passes import CELLS_A_PASS, reads_sparse, to_encode
from scmixvi.singlecell._refinement import (
    REFINEMENT_SHARE,
    EncoderRefinement,
    encoders_alone,
    own_split,
)
from scmixvi.singlecell._saving import CheckedFiles
from scmixvi.singlecell._storage import store_latents
from scmixvi.singlecell._training import (
    MixtureTrainingPlan,
    check_precision,
    named_arguments,
    with_kl_warmup,
)

logger = logging.getLogger(__name__)

REPRESENTATIONS = ("mean", "components", "params")
Representation = Literal["mean", "components", "params"]
# Elements of one decoded tensor in `get_variational_gap`: 128 MB in float32.
MAX_DECODED = 2**25
WEIGHTED_EXPRESSION_ARGUMENTS = (
    "transform_batch",
    "gene_list",
    "library_size",
    "batch_size",
    "return_numpy",
    "data_loader_kwargs",
)


class MixtureSCVI(CheckedFiles, SCVI):
    r"""SCVI with a mixture of S encoders as its posterior, trained by MISELBO.

    A drop-in for :class:`scvi.model.SCVI`: same data registration, same methods, and after
    :meth:`train` the latents are in `adata.obsm["X_mix"]`. Every cell's posterior is

    .. math:: q(z | x) = \sum_{s=1}^S \pi_s N(\mu_s(x), \mathrm{diag}\,\sigma_s^2(x)).

    Parameters
    ----------
    adata, registry, n_hidden, n_latent, n_layers, dropout_rate, dispersion
        As in :class:`scvi.model.SCVI`.
    gene_likelihood, use_observed_lib_size, latent_distribution
        As in :class:`scvi.model.SCVI`.
    n_components
        S, the number of encoders. 1 is SCVI.
    n_importance_samples
        L, samples drawn from each component for every cell and training step.
    mixture_weights
        "uniform", "learned" (one set of S weights), "amortized" (a set for each cell), or S
        numbers that sum to 1.
    encoder_sharing
        "separate": S encoders; "trunk": one encoder for all, told apart by a one-hot code of the
        component at its last hidden layer. For many components.
    estimator
        Of the training loss: "all"; "s2a", draw from `n_drawn` random components a step and score
        under all, the same bound in expectation; "s2s", score under the drawn ones alone, a looser
        bound at a cost that does not depend on S. Everything but training takes all components.
    n_drawn
        Components that a training step draws from; not looked at with "all".
    **kwargs
        Further arguments of :class:`scvi.module.VAE`.

    Raises
    ------
    ValueError
        If S or L is not a positive whole number, the weights are not a distribution over S, the
        sharing or the estimator is unknown or does not go with the rest, or an option of SCVI's
        is unknown.

    Examples
    --------
    >>> scmixvi.MixtureSCVI.setup_anndata(adata, layer="counts", batch_key="batch")
    >>> model = scmixvi.MixtureSCVI(adata, n_components=4)
    >>> model.train()
    >>> sc.pp.neighbors(adata, use_rep="X_mix")

    References
    ----------
    Kviman et al. 2022, "Learning with MISELBO: the mixture cookbook"; Lopez et al. 2018.
    """

    _module_cls = MixtureVAE
    _training_plan_cls = MixtureTrainingPlan
    _data_splitter_cls = DataSplitter
    _data_loader_cls = InMemoryLoader

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        n_hidden: int = 128,
        n_latent: int = 10,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        dispersion: Literal["gene", "gene-batch", "gene-label", "gene-cell"] = "gene",
        gene_likelihood: Literal["zinb", "nb", "poisson", "normal"] = "zinb",
        use_observed_lib_size: bool = True,
        latent_distribution: Literal["normal", "ln"] = "normal",
        n_components: int = 4,
        n_importance_samples: int = 1,
        mixture_weights: Literal["uniform", "learned", "amortized"] | Sequence[float] = "uniform",
        encoder_sharing: Literal["separate", "trunk"] = "separate",
        estimator: Literal["all", "s2a", "s2s"] = "all",
        n_drawn: int = 2,
        **kwargs: Any,
    ) -> None:
        check_mixture_arguments(n_components, n_importance_samples, mixture_weights)
        check_many_components(n_components, mixture_weights, encoder_sharing, estimator, n_drawn)
        check_scvi_options(
            dispersion=dispersion,
            gene_likelihood=gene_likelihood,
            latent_distribution=latent_distribution,
            **kwargs,
        )
        if not isinstance(mixture_weights, str):
            mixture_weights = [float(w) for w in mixture_weights]
        cls = type(self)
        if adata is None and registry is None:
            # scvi-tools allows a model without data only to a class of this name.
            self.__class__ = type("SCVI", (cls,), {})
        try:
            super().__init__(
                adata,
                registry,
                n_hidden=n_hidden,
                n_latent=n_latent,
                n_layers=n_layers,
                dropout_rate=dropout_rate,
                dispersion=dispersion,
                gene_likelihood=gene_likelihood,
                use_observed_lib_size=use_observed_lib_size,
                latent_distribution=latent_distribution,
                n_components=n_components,
                n_importance_samples=n_importance_samples,
                mixture_weights=mixture_weights,
                encoder_sharing=encoder_sharing,
                estimator=estimator,
                n_drawn=n_drawn,
                **kwargs,
            )
        finally:
            self.__class__ = cls
        self._model_summary_string = self._model_summary_string.replace(
            "SCVI model", "MixtureSCVI model", 1
        ).removesuffix(".") + (
            f", n_components: {n_components}, n_importance_samples: {n_importance_samples}, "
            f"mixture_weights: {mixture_weights}, encoder_sharing: {encoder_sharing}, "
            f"estimator: {estimator}" + ("." if estimator == "all" else f", n_drawn: {n_drawn}.")
        )
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    def setup_anndata(
        cls, adata: AnnData, layer: str | None = None, *args: Any, **kwargs: Any
    ) -> None:
        """Register data as :meth:`scvi.model.SCVI.setup_anndata` does.

        Raises
        ------
        KeyError
            If a column of obs is not there.
        ValueError
            If the counts hold NaN or infinity or are one of scipy's sparse arrays, a cell has no
            batch, label or other category, or an argument is one name where a list is meant.
        """
        setup = inspect.signature(super().setup_anndata).bind(adata, layer, *args, **kwargs)
        check_registration(adata, setup.arguments)
        check_finite(*counts_of(adata, layer))
        super().setup_anndata(adata, layer, *args, **kwargs)

    @property
    def _own(self) -> AnnData | None:
        """The model's data; None without any, where scvi-tools' `adata` may not exist."""
        return getattr(self, "_adata", None)

    def _validate_anndata(self, adata: AnnData | None = None, copy_if_view: bool = True) -> AnnData:
        """As scvi-tools does, and raise for what it would take and turn into NaN."""
        own = self._own
        if adata is not None and adata is not own:
            _check_if_view(adata, copy_if_view)
            registry = getattr(self, "registry_", None) or {}
            check_query(adata, registry.get(_SETUP_ARGS_KEY) or {})
        adata = super()._validate_anndata(adata, copy_if_view)
        if adata is own:
            self._check_registered_numbers()
        return adata

    def _make_data_loader(
        self, adata: AnnData, indices: Sequence[int] | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As scvi-tools does, of cells that are there; raises ValueError for others."""
        indices = check_indices(indices, adata.n_obs)
        return super()._make_data_loader(adata, indices, *args, **kwargs)

    def _check_registered_numbers(self) -> None:
        """Raise for covariates and size factors that cannot be trained on."""
        manager = self.adata_manager
        registered = manager.data_registry
        if REGISTRY_KEYS.CONT_COVS_KEY in registered:
            check_covariates(manager.get_from_registry(REGISTRY_KEYS.CONT_COVS_KEY))
        if REGISTRY_KEYS.SIZE_FACTOR_KEY in registered:
            factors = manager.get_from_registry(REGISTRY_KEYS.SIZE_FACTOR_KEY)
            check_size_factors(factors, registered[REGISTRY_KEYS.SIZE_FACTOR_KEY].attr_key)

    def _check_registered_data(self) -> None:
        """Raise for counts, covariates and size factors that cannot be trained on."""
        if self.minified_data_type is not None:
            # scvi-tools says so only after a step has changed the statistics of batch norm.
            error = ValueError("The VAE.loss function currently does not support minified data.")
            error.add_note("Train before minify_adata, or load the model with the full data.")
            raise error
        self._check_registered_numbers()
        module = self.module
        if module.gene_likelihood == "normal":
            return
        counts = self.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY)
        check_counts(counts, module.use_observed_lib_size and not module.use_size_factor_key)

    # ---------------------------------------------------------------- training

    def train(self, *args: Any, latent_key: str | None = "X_mix", **kwargs: Any) -> None:
        """Train by MISELBO and store the latents in `adata.obsm[latent_key]`.

        The KL weight rises from 0 to 1 over the first quarter of the epochs, unless `plan_kwargs`
        or `plan_config` says otherwise (`n_epochs_kl_warmup`, `n_steps_kl_warmup`); scvi-tools'
        400 epochs would never reach 1 on most data sets. A model that is trained already, or
        comes from a trained SCVI, goes on at weight 1.

        Parameters
        ----------
        *args, **kwargs
            As in :meth:`scvi.model.SCVI.train`.
        latent_key
            Where to store :meth:`get_latent_representation`, replacing what is there; None leaves
            adata alone. With an `AnnCollection` without `obsm` of its own it is the `obsm` of
            each of its parts.

        Raises
        ------
        ValueError
            If the data are minified, if `latent_key` is neither a non-empty string nor None, if
            the counts are negative or a cell has none, if continuous covariates or size factors
            are not finite, or size factors not above 0, if `precision` changes the type of the
            weights, or if the loss is no longer finite.
        """
        if latent_key is not None and (not isinstance(latent_key, str) or not latent_key):
            raise ValueError(
                f"latent_key must be the name of a slot of adata.obsm, or None, not {latent_key!r}."
            )
        has_adata = self._own is not None
        if has_adata:
            self._check_registered_data()
        arguments = named_arguments(super().train, args, kwargs)
        check_precision(arguments)
        max_epochs = arguments.get("max_epochs") or self._default_max_epochs(arguments)
        arguments["plan_kwargs"] = with_kl_warmup(
            arguments.get("plan_kwargs"),
            arguments.get("plan_config"),
            max_epochs,
            self.is_trained_,
        )
        module = self.module
        was_training = module is not None and module.training
        whole = module is not None and all(p.requires_grad for p in module.parameters())
        if whole:
            # Lightning keeps the mode it finds, and a trained or loaded module is in evaluation
            # mode: without this a second training would run without dropout or batch statistics.
            # A query model (scArches) stays as scvi-tools leaves it: statistics of a batch would
            # cancel the covariate's weights, which are all that it trains.
            module.train()
        was_trained = self.is_trained_
        if self.history is None:
            # scvi-tools adds to the history of a trained model: where there is none (the model
            # comes from a trained SCVI) it would record nothing.
            self.is_trained_ = False
        try:
            result = super().train(**arguments)
        except BaseException:
            if whole:
                module.train(was_training)
            raise
        finally:
            self.is_trained_ = self.is_trained_ or was_trained
        if latent_key is not None and has_adata:
            store_latents(self.adata, latent_key, self.get_latent_representation())
            logger.info("stored the latents in adata.obsm[%r]", latent_key)
        return result

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
            frozen, or as in :meth:`train`.

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
        arguments = own_split(self, named_arguments(super().train, args, kwargs))
        if not arguments.get("max_epochs"):
            whole = self._default_max_epochs(arguments)
            arguments["max_epochs"] = whole and max(1, round(REFINEMENT_SHARE * whole))
        history, self.history_ = self.history_, self.refinement_history
        self._training_plan_cls = EncoderRefinement
        try:
            with encoders_alone(self.module):
                self.train(**arguments, latent_key=latent_key)
        finally:
            del self._training_plan_cls
            self.refinement_history_, self.history_ = self.history_, history

    @property
    def refinement_history(self) -> dict[str, pd.DataFrame] | None:
        """Metrics of every epoch of :meth:`refine_encoders`, as `history`; None without any."""
        return getattr(self, "refinement_history_", None)

    def _default_max_epochs(self, arguments: dict) -> int | None:
        source = arguments.get("datamodule") or self._own
        n_obs = getattr(source, "n_obs", None)
        return None if n_obs is None else get_max_epochs_heuristic(n_obs)

    # ---------------------------------------------------------------- what a cell's posterior is

    @torch.inference_mode()
    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        give_mean: bool = True,
        mc_samples: int = 5_000,
        batch_size: int | None = None,
        return_dist: bool = False,
        dataloader: Iterator[dict[str, Tensor | None]] | None = None,
        representation: Representation = "mean",
        **data_loader_kwargs: Any,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Latent representation of every cell.

        Parameters
        ----------
        adata, indices, give_mean, mc_samples, batch_size, dataloader, **data_loader_kwargs
            As in :meth:`scvi.model.SCVI.get_latent_representation`.
            Without a `batch_size` cells are encoded 1024 at a time.
        return_dist
            Return mean and variance of the mixture, `(n, D)` each.
        representation
            "mean": the mixture's mean, `(n, D)`; "components": the S component means side by
            side, `(n, S*D)`; "params": component means, then component variances, `(n, 2*S*D)`,
            the paper's choice. With a logistic-normal latent distribution the last two are the
            parameters before the softmax.

        Returns
        -------
        An array with one row a cell, or two with `return_dist`.

        Raises
        ------
        ValueError
            If the representation is unknown, or does not go with `give_mean` or `return_dist`, if
            `indices` are neither positions nor a mask of cells, or if counts, covariates or size
            factors are not finite.
        """
        if representation not in REPRESENTATIONS:
            raise ValueError(
                f"representation must be one of {list(REPRESENTATIONS)}, "
                f"but it is {representation!r}."
            )
        if representation != "mean" and (return_dist or not give_mean):
            raise ValueError(
                f"representation={representation!r} is one array of parameters: leave out "
                "return_dist and give_mean, which go with representation='mean'."
            )
        self._check_if_trained(warn=False)
        if not return_dist and representation == "mean":
            transformed = self.module.latent_distribution == "ln"
            wrapped = not isinstance(self.module, MixtureVAE)
            if transformed or wrapped or not give_mean:
                return super().get_latent_representation(
                    adata,
                    indices,
                    give_mean,
                    mc_samples,
                    batch_size,
                    return_dist,
                    dataloader,
                    **data_loader_kwargs,
                )
        rows, batch_size = [], batch_size or max(settings.batch_size, CELLS_A_PASS)
        for qz in self._posteriors(adata, indices, batch_size, dataloader, **data_loader_kwargs):
            if return_dist:
                parts = [qz.mean, qz.variance]
            elif representation == "mean":
                parts = [qz.mean]
            else:
                parts = [qz.c_loc.flatten(1)]
                if representation == "params":
                    parts.append(qz.c_scale.square().flatten(1))
            rows.append(torch.cat(parts, dim=1).cpu())
        found = torch.cat(rows).numpy()
        return tuple(np.split(found, 2, axis=1)) if return_dist else found

    def get_marginal_ll(self, *args: Any, **kwargs: Any) -> Tensor | np.floating:
        """Importance-sampled log p(x), as :meth:`scvi.model.SCVI.get_marginal_ll` gives it.

        The mean is over cells. (scvi-tools averages the means of minibatches, so that the cells of
        a short last one count for more.) Further arguments: :meth:`MixtureVAE.marginal_ll`'s.

        Raises
        ------
        ValueError
            If `n_mc_samples` is not a whole number of at least 1.
        """
        bound = inspect.signature(super().get_marginal_ll).bind(*args, **kwargs)
        bound.apply_defaults()
        check_whole("n_mc_samples", bound.arguments["n_mc_samples"])
        mean = bound.arguments["return_mean"]
        bound.arguments["return_mean"] = False
        by_cell = super().get_marginal_ll(*bound.args, **bound.kwargs)
        return np.mean(np.asarray(by_cell)) if mean else by_cell

    def get_normalized_expression(self, *args: Any, **kwargs: Any) -> np.ndarray | pd.DataFrame:
        """Decoded expression, as :meth:`scvi.model.SCVI.get_normalized_expression` gives it.

        With `weights="importance"` and `n_samples_overall` the estimator is scvi-tools', one
        minibatch at a time: memory holds a minibatch, the latents and what is returned. Weights
        do nothing without `n_samples_overall`, there as here. In a DataFrame of chosen draws the
        index names the cell of each. A warning says if the weights rest on few draws.

        Raises
        ------
        ValueError
            If importance weights are asked for and the likelihood is neither ZINB nor NB, or as in
            :meth:`get_latent_representation`.
        """
        bound = inspect.signature(super().get_normalized_expression).bind(*args, **kwargs)
        given = bound.arguments
        adata = self._own if given.get("adata") is None else given["adata"]
        if given.get("dataloader") is None and adata is not None:
            # scvi-tools counts them, and names the rows by them.
            given["indices"] = check_indices(given.get("indices"), adata.n_obs)
        batches, n_draws = given.get("transform_batch"), given.get("n_samples_overall")
        weighted = given.get("weights") == "importance"
        if weighted and n_draws is not None and self.module.gene_likelihood not in ("zinb", "nb"):
            raise ValueError(
                "weights='importance' needs gene_likelihood 'zinb' or 'nb', but this model's is "
                f"{self.module.gene_likelihood!r}: leave `weights` out."
            )
        if (
            not weighted
            or given.get("dataloader") is not None
            or (isinstance(batches, list | tuple) and len(batches) > 1)
            or given.get("n_samples", 1) != 1
        ):
            return super().get_normalized_expression(*bound.args, **bound.kwargs)
        if n_draws is None:
            given["weights"] = None
            return super().get_normalized_expression(*bound.args, **bound.kwargs)
        adata = self._validate_anndata(adata)
        indices = np.arange(adata.n_obs) if given["indices"] is None else given["indices"]
        passed_on = {k: given[k] for k in WEIGHTED_EXPRESSION_ARGUMENTS if k in given}
        passed_on |= given.get("importance_weighting_kwargs", {})
        return weighted_expression(self, adata, indices, n_draws, **passed_on)

    def differential_expression(self, *args: Any, **kwargs: Any) -> pd.DataFrame:
        """Compare groups of cells, as :meth:`scvi.model.SCVI.differential_expression` does.

        Raises
        ------
        KeyError
            If there is no column `groupby`.
        ValueError
            If a group has no cells, or `idx1` or `idx2` are neither positions nor a mask of cells.
        """
        bound = inspect.signature(super().differential_expression).bind(*args, **kwargs)
        given = bound.arguments
        adata = self._own if given.get("adata") is None else given["adata"]
        if adata is not None:
            for name in ("idx1", "idx2"):
                if given.get(name) is not None and not isinstance(given[name], str):
                    given[name] = check_indices(np.ravel(given[name]), adata.n_obs, name)
            if given.get("idx1") is None:
                names = ("groupby", "group1", "group2")
                subset = given.get("kwargs", {}).get("subset_idx")
                check_groups(adata, *map(given.get, names), subset)
        return super().differential_expression(*bound.args, **bound.kwargs)

    @torch.inference_mode()
    def get_component_weights(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
        dataloader: Iterator[dict[str, Tensor | None]] | None = None,
    ) -> np.ndarray:
        """Mixture weights of every cell, `(n, S)`; rows sum to 1.

        They differ from cell to cell only with `mixture_weights="amortized"`.

        Parameters
        ----------
        adata, indices, batch_size, dataloader
            As in :meth:`get_latent_representation`.
        """
        posteriors = self._posteriors(adata, indices, batch_size, dataloader)
        return torch.cat([qz.c_log_weights.exp().cpu() for qz in posteriors]).numpy()

    @torch.inference_mode()
    def get_posterior_diversity(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        n_samples: int = 100,
        batch_size: int | None = None,
        dataloader: Iterator[dict[str, Tensor | None]] | None = None,
    ) -> np.ndarray:
        """How much the components disagree about each cell: their Jensen-Shannon divergence.

        A Monte Carlo estimate in nats, `(n,)`: near 0 where all components say the same, at most
        log S where they do not overlap (Eq. 19 of the paper).

        Parameters
        ----------
        adata, indices, batch_size, dataloader
            As in :meth:`get_latent_representation`.
        n_samples
            Draws from each component.

        Raises
        ------
        ValueError
            If `n_samples` is not a whole number of at least 1.
        """
        check_whole("n_samples", n_samples)
        posteriors = self._posteriors(adata, indices, batch_size, dataloader)
        return torch.cat([qz.posterior.jsd(n_samples).cpu() for qz in posteriors]).numpy()

    @torch.inference_mode()
    def get_variational_gap(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        n_samples: int = 1000,
        batch_size: int | None = None,
        progress: bool = True,
    ) -> pd.DataFrame:
        r"""How far each cell's posterior is from the exact one of this decoder, in nats.

        .. math:: \log p(x) - \text{MISELBO}(x) = \text{KL}(q(z | x) \,\|\, p(z | x))

        Importance-sampled :meth:`get_marginal_ll` depends on the encoders, which are its proposal.
        Here log p(x) is estimated by a proposal of each cell's own, which adaptive importance
        sampling fits to its exact posterior; the encoders are only where it starts.

        Parameters
        ----------
        adata, indices
            As in :meth:`get_latent_representation`. A cell takes some thousand decoder passes:
            choose some hundred cells first.
        n_samples
            Draws a cell for MISELBO, spread evenly over the components.
        batch_size
            Cells at a time; None fits them into some 100 MB a tensor.
        progress
            Show a progress bar.

        Returns
        -------
        One row a cell: `log_likelihood`, `miselbo`, `gap`; `effective_share`, the share of the
        proposal's 1600 draws that count, 0 to 1; and `still_rising`, how much the estimate of log
        p(x) is above that from ten times fewer draws. Where the share is below a few per cent, or
        it is still rising, log p(x) and the gap are larger than said.

        Raises
        ------
        ValueError
            If library sizes are latent, the data are minified without counts, `n_samples` is not a
            whole number of at least 1, or as in :meth:`get_latent_representation`.

        References
        ----------
        Cappé et al. 2008, "Adaptive importance sampling in general mixture classes".
        """
        self._check_if_trained(warn=False)
        check_whole("n_samples", n_samples)
        adata = self._validate_anndata(adata)
        if not self.module.use_observed_lib_size:
            raise ValueError(
                "the gap is known only for observed library sizes, and this model's are latent: "
                "use get_marginal_ll and get_elbo, whose difference is at most the gap."
            )
        if self.minified_data_type == ADATA_MINIFY_TYPE.LATENT_POSTERIOR:
            raise ValueError(
                "the data are minified without counts, which log p(x) is of: load the model with "
                "the full data."
            )
        batch_size = batch_size or max(1, MAX_DECODED // (N_FINAL * adata.n_vars))
        rows = check_indices(indices, adata.n_obs)
        batches = self._make_data_loader(adata=adata, indices=rows, batch_size=batch_size)
        found = [
            variational_gaps(
                self.module, {k: v.to(self.device) for k, v in tensors.items()}, n_samples
            )
            for tensors in track(batches, "cells", disable=not progress)
        ]
        columns = {k: torch.cat([part[k] for part in found]).cpu().numpy() for k in found[0]}
        return pd.DataFrame(columns, adata.obs_names[slice(None) if rows is None else rows])

    def _posteriors(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
        dataloader: Iterator[dict[str, Tensor | None]] | None = None,
        **data_loader_kwargs: Any,
    ) -> Iterator[Distribution]:
        """q(z|x) of every minibatch."""
        self._check_if_trained(warn=False)
        _validate_adata_dataloader_input(self, adata, dataloader)
        if dataloader is None:
            adata = self._validate_anndata(adata)
            data_loader_kwargs.setdefault("load_sparse_tensor", reads_sparse(self.module))
            dataloader = self._make_data_loader(
                adata=adata, indices=indices, batch_size=batch_size, **data_loader_kwargs
            )
        for tensors in dataloader:
            inputs = self.module._get_inference_input(to_encode(tensors))
            yield self.module.inference(**inputs)["qz"]

    @torch.inference_mode()
    def get_aggregated_posterior(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
        dof: float | None = 3.0,
    ) -> Distribution:
        """The average posterior of some cells: a mixture of n*S components.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`get_latent_representation`, but that empty `indices` are all cells, as in
            scvi-tools.
        dof
            Degrees of freedom of Student's t components with the Gaussians' locations and scales;
            None keeps the Gaussians.
        """
        if indices is not None and np.size(indices) == 0:
            indices = None
        posteriors = list(self._posteriors(adata, indices, batch_size))
        loc = torch.cat([qz.c_loc.flatten(0, 1) for qz in posteriors])
        scale = torch.cat([qz.c_scale.flatten(0, 1) for qz in posteriors])
        log_weights = torch.cat([qz.c_log_weights.flatten() for qz in posteriors])
        components = Normal(loc, scale) if dof is None else StudentT(dof, loc, scale)
        return MixtureSameFamily(Categorical(logits=log_weights), Independent(components, 1))

    # ---------------------------------------------------------------- from and to SCVI

    @classmethod
    def from_scvi_model(
        cls,
        scvi_model: SCVI,
        n_components: int = 4,
        adata: AnnData | None = None,
        jitter: float = 0.1,
        **mixture_kwargs: Any,
    ) -> "MixtureSCVI":
        """Start a mixture from a trained SCVI: the same decoder, its encoder S times.

        Component 0 is SCVI's encoder exactly. The others get noise on the weights of the heads
        for mean and variance, `jitter` times each weight matrix's standard deviation, so that
        training can tell them apart; with `encoder_sharing="trunk"` their vectors are noise,
        `jitter` times the norms of the last hidden layer's weights. With `n_components=1` the new
        model equals the old one.

        Parameters
        ----------
        scvi_model
            The model to start from.
        n_components
            S.
        adata
            Data to attach; the model's own by default.
        jitter
            Relative size of the noise.
        **mixture_kwargs
            `n_importance_samples`, `mixture_weights`, `encoder_sharing`, `estimator`, `n_drawn`.

        Returns
        -------
        A MixtureSCVI that counts as trained when `scvi_model` does.

        Raises
        ------
        TypeError
            If an argument is none of those.
        ValueError
            If there is no adata, the model is not an SCVI, the mixture's arguments are none, or
            `jitter` is not a finite number of at least 0.
        """
        if type(scvi_model).__name__ != "SCVI" or scvi_model.module is None:
            raise ValueError(
                "from_scvi_model needs an scvi.model.SCVI whose module exists, "
                f"but got a {type(scvi_model).__name__}."
            )
        unknown = mixture_kwargs.keys() - set(MIXTURE_ARGUMENTS)
        if unknown:
            raise TypeError(
                f"from_scvi_model takes no {listing(sorted(unknown))}: an argument of the mixture "
                f"is one of {listing(MIXTURE_ARGUMENTS)}, and the others are those of the SCVI."
            )
        check_jitter(jitter)
        mixture_weights = mixture_kwargs.get("mixture_weights", "uniform")
        check_mixture_arguments(
            n_components, mixture_kwargs.get("n_importance_samples", 1), mixture_weights
        )
        check_many_components(
            n_components,
            mixture_weights,
            mixture_kwargs.get("encoder_sharing", "separate"),
            mixture_kwargs.get("estimator", "all"),
            mixture_kwargs.get("n_drawn", 2),
        )
        adata = data_of(scvi_model, adata)
        model = twin(cls, scvi_model, adata, n_components=n_components, **mixture_kwargs)
        state = components_from_one(scvi_model.module.state_dict(), n_components)
        model.module.load_state_dict(state, strict=False)
        tell_apart(model.module, jitter)
        return model

    def to_scvi(self, component: int | None = None, adata: AnnData | None = None) -> SCVI:
        """Hand over to scvi-tools: an SCVI with this decoder and one of the encoders.

        What SCANVI, SOLO's peers and the hub want is an :class:`scvi.model.SCVI`; this is one.

        Parameters
        ----------
        component
            Which encoder, 0 to S - 1. None takes the one with the best ELBO of its own among those
            that have weight, averaged over several draws for (at most 2000 of) the model's cells,
            or those of `adata` where it has none. The same model gives the same one every time.
        adata
            Data to attach; the model's own by default. Of minified data a copy is attached, with
            the parameters of that encoder.

        Raises
        ------
        ValueError
            If there is no such component, no adata, a trunk whose layers have no bias, or if none
            is named and the model's data are minified without counts, which have no ELBO.
        """
        data = data_of(self, adata)
        if component is None:
            component = self._best_component(data)
        component = check_component(component, self.module.n_components)
        state = one_of_components(self.module.state_dict(), component)
        model = twin(SCVI, self, of_component(data, component, self.module.n_latent))
        model.module.load_state_dict(state, strict=False)
        return model

    @torch.inference_mode()
    def _best_component(self, data: AnnData, max_cells: int = 2000, n_draws: int = 10) -> int:
        module = self.module
        if module.n_components == 1:
            return 0
        if module.minified_data_type == ADATA_MINIFY_TYPE.LATENT_POSTERIOR:
            raise ValueError(
                "the data are minified without counts, so that no component is known to be the "
                f"best: name one of 0 to {module.n_components - 1} as `component`."
            )
        adata = self._validate_anndata(data) if self.adata is None else self.adata
        indices = np.linspace(0, adata.n_obs - 1, min(max_cells, adata.n_obs)).astype(int)
        module.eval()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            bounds = sum(
                module.component_bounds(batch).sum(1)
                for batch in self._make_data_loader(adata=adata, indices=indices)
                for _ in range(n_draws)
            )
        if not isinstance(module.mixture_weights, str):
            bounds[torch.tensor(module.mixture_weights) == 0] = -torch.inf
        return int(bounds.argmax())

    # ---------------------------------------------------------------- minified data

    def minify_adata(
        self,
        minified_data_type: str = ADATA_MINIFY_TYPE.LATENT_POSTERIOR,
        use_latent_qzm_key: str = "X_latent_qzm",
        use_latent_qzv_key: str = "X_latent_qzv",
    ) -> None:
        """Replace the counts by every component's posterior parameters, `(n, S*D)` each.

        As :meth:`scvi.model.SCVI.minify_adata`, which stores one mean and variance a cell. Those
        may be in `adata.obsm` under the two keys, as scvi-tools' users put them there; the
        components' parameters are computed afresh.
        """
        with torch.inference_mode():
            packed = [self.module.pack_posterior(qz) for qz in self._posteriors()]
        means, variances = (torch.cat(part).cpu().numpy() for part in zip(*packed, strict=True))
        own = {use_latent_qzm_key: means, use_latent_qzv_key: variances}
        full, theirs = self.adata, {k: self.adata.obsm[k] for k in own if k in self.adata.obsm}
        full.obsm.update(own)
        try:
            super().minify_adata(minified_data_type, use_latent_qzm_key, use_latent_qzv_key)
        finally:
            for data in (full, self.adata):
                for key in own:
                    data.obsm.pop(key, None)
                data.obsm.update(theirs)
