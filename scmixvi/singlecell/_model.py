"""MixtureSCVI, the model that users meet: SCVI with one more idea."""

import inspect
from collections.abc import Sequence
from typing import Any, Literal

import rich.pretty  # noqa: F401  scvi-tools 1.4 uses it without importing it
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data._constants import (
    _FIELD_REGISTRIES_KEY,
    _SCVI_UUID_KEY,
    _SETUP_ARGS_KEY,
    _STATE_REGISTRY_KEY,
)
from scvi.data._utils import _check_if_view
from scvi.data.fields import LayerField
from scvi.model import SCVI

from scmixvi._messages import check_whole
from scmixvi.singlecell._checks.arguments import (
    check_batch_size,
    check_indices,
    check_is_data,
    check_many_components,
    check_mixture_arguments,
    check_scvi_options,
    check_thinning,
)
from scmixvi.singlecell._checks.data import (
    check_covariates,
    check_finite,
    check_registration,
    check_size_factors,
    counts_of,
)
from scmixvi.singlecell._checks.queries import (
    check_can_encode,
    check_categories,
    check_own_genes,
    check_places,
    check_query,
    check_stored_posteriors,
)
from scmixvi.singlecell._exchange.conversions import Conversions
from scmixvi.singlecell._exchange.saving import CheckedFiles
from scmixvi.singlecell._module import MixtureVAE
from scmixvi.singlecell._queries.estimates import Estimates
from scmixvi.singlecell._queries.exact import ExactPosteriors
from scmixvi.singlecell._queries.groups import GroupPosteriors
from scmixvi.singlecell._queries.posteriors import Posteriors
from scmixvi.singlecell._training.fitting import Fitting
from scmixvi.singlecell._training.minibatches import DataSplitter, InMemoryLoader
from scmixvi.singlecell._training.plan import MixtureTrainingPlan


class MixtureSCVI(
    Fitting,
    Posteriors,
    GroupPosteriors,
    ExactPosteriors,
    Estimates,
    Conversions,
    CheckedFiles,
    SCVI,
):
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
        bound at a cost that hardly depends on S. Everything but training takes all components.
    n_drawn
        Components that a training step draws from; not looked at with "all".
    thinning_rate
        In training the encoders see each cell without a random share of its counts, uniform in 0
        to this rate, scaled up to the depth it had. 0 is SCVI.
    **kwargs
        Further arguments of :class:`scvi.module.VAE`.

    Raises
    ------
    ValueError
        If S or L is not a positive whole number, the weights are not a distribution over S, the
        sharing or the estimator is unknown or does not go with the rest, the thinning rate is
        not in [0, 1) or above 0 for what are no counts, or an option of SCVI's is unknown.

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
        thinning_rate: float = 0.0,
        **kwargs: Any,
    ) -> None:
        check_mixture_arguments(n_components, n_importance_samples, mixture_weights)
        for name, size in (("n_hidden", n_hidden), ("n_latent", n_latent), ("n_layers", n_layers)):
            check_whole(name, size)
        check_many_components(n_components, mixture_weights, encoder_sharing, estimator, n_drawn)
        check_thinning(thinning_rate, gene_likelihood)
        check_scvi_options(
            dispersion=dispersion,
            gene_likelihood=gene_likelihood,
            latent_distribution=latent_distribution,
            **kwargs,
        )
        if not isinstance(mixture_weights, str):
            mixture_weights = [float(w) for w in mixture_weights]
        thinning_rate = float(thinning_rate)
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
                thinning_rate=thinning_rate,
                **kwargs,
            )
        finally:
            self.__class__ = cls
        self._model_summary_string = self._model_summary_string.replace(
            "SCVI model", "MixtureSCVI model", 1
        ).removesuffix(".") + (
            f", n_components: {n_components}, n_importance_samples: {n_importance_samples}, "
            f"mixture_weights: {mixture_weights}, encoder_sharing: {encoder_sharing}, "
            f"estimator: {estimator}"
            + ("" if estimator == "all" else f", n_drawn: {n_drawn}")
            + (f", thinning_rate: {thinning_rate}." if thinning_rate else ".")
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
            batch, label or other category, or an argument is one name where a list is meant; of
            cells for a saved model also if its genes stand in another order, or a category is
            not one of its own.
        """
        setup = inspect.signature(super().setup_anndata).bind(adata, layer, *args, **kwargs)
        check_registration(adata, setup.arguments)
        further = setup.arguments.get("kwargs", {})
        if (source := further.get("source_registry")) is not None:
            if (genes := _genes_of(source)) is not None:
                check_places(adata.var_names, genes)
            may_be_new = further.get("extend_categories", False)
            check_categories(adata.obs, setup.arguments, source, may_be_new)
        check_finite(*counts_of(adata, layer))
        super().setup_anndata(adata, layer, *args, **kwargs)

    @property
    def _own(self) -> AnnData | None:
        """The model's data; None without any, where scvi-tools' `adata` may not exist."""
        return getattr(self, "_adata", None)

    def _validate_anndata(self, adata: AnnData | None = None, copy_if_view: bool = True) -> AnnData:
        """As scvi-tools does, and raise for what it would take and turn into NaN."""
        own = self._own
        if adata is None and own is None:
            raise ValueError("the model has no data of its own: name the cells, adata=...")
        if adata is None or adata is own:
            self._check_own_genes()
        else:
            check_is_data(adata)
            _check_if_view(adata, copy_if_view)
            registry = getattr(self, "registry_", None) or {}
            genes = _genes_of(registry)
            if own is not None and genes is not None and len(own.var_names) == len(genes):
                genes = own.var_names  # which may have got other names since
            is_known = self._knows(adata)
            setup = registry.get(_SETUP_ARGS_KEY) or {}
            takes_counts = self._takes_counts and not is_known
            check_query(adata, setup, genes, takes_counts, self._needs_library)
            if not is_known:  # else it has its categories, whatever they are called since
                check_categories(adata.obs, setup, registry)
            if own is not None:
                check_stored_posteriors(adata, self.minified_data_type)
        adata = super()._validate_anndata(adata, copy_if_view)
        if adata is own:
            self._check_registered_numbers()
        return adata

    def _check_own_genes(self) -> None:
        if self._own is not None and self.minified_data_type is None:
            check_own_genes(self._own.shape[1], self.summary_stats.n_vars)

    def _knows(self, adata: AnnData) -> bool:
        """Whether this model has registered, and so looked at, this very object."""
        managers = self._per_instance_manager_store.get(self.id, {})
        manager = managers.get(adata.uns.get(_SCVI_UUID_KEY))
        return manager is not None and manager.adata is adata

    @property
    def _takes_counts(self) -> bool:
        """Whether the data have to be counts."""
        return self.module is not None and self.module.gene_likelihood != "normal"

    @property
    def _needs_library(self) -> bool:
        """Whether a cell without counts has no library size."""
        module = self.module
        observed = self._takes_counts and module.use_observed_lib_size
        return observed and not module.use_size_factor_key

    def _make_data_loader(
        self,
        adata: AnnData,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """As scvi-tools does; raises ValueError for cells that are not there, or minibatches."""
        if self._own is not None:
            check_can_encode(adata, self.minified_data_type)
        indices = check_indices(indices, adata.n_obs)
        batch_size = check_batch_size(batch_size)
        return super()._make_data_loader(adata, indices, batch_size, *args, **kwargs)

    def _check_registered_numbers(self) -> None:
        """Raise for covariates and size factors that cannot be trained on."""
        manager = self.adata_manager
        registered = manager.data_registry
        if REGISTRY_KEYS.CONT_COVS_KEY in registered:
            check_covariates(manager.get_from_registry(REGISTRY_KEYS.CONT_COVS_KEY))
        if REGISTRY_KEYS.SIZE_FACTOR_KEY in registered:
            factors = manager.get_from_registry(REGISTRY_KEYS.SIZE_FACTOR_KEY)
            check_size_factors(factors, registered[REGISTRY_KEYS.SIZE_FACTOR_KEY].attr_key)


def _genes_of(registry: dict[str, Any]) -> Sequence[str] | None:
    """Names of the genes that a model was registered with; None where it does not say."""
    counts = (registry.get(_FIELD_REGISTRIES_KEY) or {}).get(REGISTRY_KEYS.X_KEY) or {}
    return (counts.get(_STATE_REGISTRY_KEY) or {}).get(LayerField.COLUMN_NAMES_KEY)
