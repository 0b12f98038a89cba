"""A MixtureSCVI from an SCVI, and an SCVI from a MixtureSCVI."""

import warnings
from copy import deepcopy
from typing import Any, Self

import numpy as np
import torch
from anndata import AnnData
from scvi.data._constants import ADATA_MINIFY_TYPE
from scvi.model import SCVI

from scmixvi._messages import listing
from scmixvi.singlecell._checks.arguments import (
    check_component,
    check_jitter,
    check_many_components,
    check_mixture_arguments,
    check_thinning,
)
from scmixvi.singlecell._exchange.twins import (
    MIXTURE_ARGUMENTS,
    components_from_one,
    data_of,
    of_component,
    one_of_components,
    tell_apart,
    twin,
)

# Metrics that only several components have, as `history` names them.
OF_COMPONENTS = ("jsd", "weight_")


class Conversions:
    """Methods of :class:`~scmixvi.MixtureSCVI` that start from an SCVI or hand one over."""

    @classmethod
    def from_scvi_model(
        cls,
        scvi_model: SCVI,
        n_components: int = 4,
        adata: AnnData | None = None,
        jitter: float = 0.1,
        **mixture_kwargs: Any,
    ) -> Self:
        """Start a mixture from a trained SCVI: the same decoder, its encoder S times.

        Component 0 is SCVI's encoder exactly. The others get noise on weights and biases of the
        heads for mean and variance, `jitter` times the standard deviation of each, so that training
        can tell them apart; with `encoder_sharing="trunk"` their vectors are noise, `jitter` times
        the norms of the last hidden layer's weights. With `n_components=1` the new model equals the
        old one.

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
            `n_importance_samples`, `mixture_weights`, `encoder_sharing`, `estimator`, `n_drawn`,
            `thinning_rate`.

        Returns
        -------
        A MixtureSCVI that counts as trained when `scvi_model` does. One of a query model (scArches)
        trains what that one does. Where the data are minified, they hold SCVI's posterior, which
        everything that reads it goes on reading.

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
                "from_scvi_model takes an scvi.model.SCVI that has its data or was loaded "
                f"(scvi.model.SCVI.load), but it is given a {type(scvi_model).__name__}."
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
        check_thinning(mixture_kwargs.get("thinning_rate", 0.0), scvi_model.module.gene_likelihood)
        adata = data_of(scvi_model, adata)
        model = twin(cls, scvi_model, adata, n_components=n_components, **mixture_kwargs)
        state = components_from_one(scvi_model.module.state_dict(), n_components)
        model.module.load_state_dict(state, strict=False)
        tell_apart(model.module, jitter)
        if model.minified_data_type is not None and n_components > 1:
            warnings.warn(
                "the data are minified, and latents, weights and diversity are read from the "
                "posterior of the one encoder that they hold: load the SCVI with the full data "
                "first or, where they have counts, call minify_adata again after training.",
                UserWarning,
                stacklevel=2,
            )
        return model

    def to_scvi(self, component: int | None = None, adata: AnnData | None = None) -> SCVI:
        """Hand over to scvi-tools: an SCVI with this decoder and one of the encoders.

        What SCANVI starts from is an :class:`scvi.model.SCVI`; this is one. One of a query model
        (scArches) trains what that one does.

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
        # scvi-tools only adds to a history that is there. Of several components it has no part.
        history = {k: v for k, v in (self.history or {}).items() if not k.startswith(OF_COMPONENTS)}
        model.history_ = None if self.history is None else deepcopy(history)
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
