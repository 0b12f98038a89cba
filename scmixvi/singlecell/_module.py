"""The module behind MixtureSCVI: SCVI's generative model, a mixture of S encoders, MISELBO."""

import inspect
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from scvi.module import VAE
from torch import nn

from scmixvi.core import log_weights_from
from scmixvi.singlecell._checks.arguments import (
    check_many_components,
    check_mixture_arguments,
    check_thinning,
)
from scmixvi.singlecell._parts.bound import Bound
from scmixvi.singlecell._parts.evaluation import Evaluation
from scmixvi.singlecell._parts.generative import Generation
from scmixvi.singlecell._parts.inference import Inference
from scmixvi.singlecell._parts.trunk import initial_offsets


class MixtureVAE(Inference, Generation, Bound, Evaluation, VAE):
    r"""SCVI's variational autoencoder with a mixture posterior.

    The generative model is that of :class:`scvi.module.VAE`, unchanged. The posterior is

    .. math:: q(z | x) = \sum_{s=1}^S \pi_s N(\mu_s(x), \mathrm{diag}\,\sigma_s^2(x))

    with one encoder a component, and training maximises MISELBO (Eq. 4 of the paper).

    Parameters
    ----------
    *args, **kwargs
        Those of :class:`scvi.module.VAE`; the signature lists them by name.
    n_components
        S, the number of encoders.
    n_importance_samples
        L, samples a component and cell in each training step. While the KL weight is below 1 the
        L samples are averaged outside the logarithm, for then an importance-weighted bound of L
        samples bounds nothing.
    mixture_weights
        "uniform", "learned" (one set of S weights), "amortized" (a set for each cell), or S
        numbers that sum to 1.
    encoder_sharing
        "separate": S encoders; "trunk": one encoder for all, whose last hidden layer also sees a
        one-hot code of the component.
    estimator
        Of the training loss: "all" draws from every component; "s2a" from `n_drawn` components
        chosen at random in each step, scored under all (the same bound in expectation); "s2s" from
        `n_drawn`, scored under those alone (a looser bound, whose cost hardly depends on S).
        Evaluation mode always takes all.
    n_drawn
        A, components that a training step draws from; not looked at with "all".
    thinning_rate
        In training the encoders of z see, in place of a cell x, Binomial(x, 1 - r) / (1 - r): it
        without a share r of its counts, scaled up to its depth; r is uniform in 0 to this rate,
        another for each cell and step. The bound is that of the whole cell all the same, for
        log p(x) is bounded with any distribution of z (Im et al. 2017). 0 is SCVI.

    Raises
    ------
    ValueError
        If S or L is not a positive integer, the weights are not a distribution over S, the
        sharing or the estimator is unknown or does not go with the rest, or the thinning rate is
        not in [0, 1) or above 0 for what are no counts.
    """

    def __init__(
        self,
        *args: Any,
        n_components: int = 4,
        n_importance_samples: int = 1,
        mixture_weights: str | Sequence[float] = "uniform",
        encoder_sharing: str = "separate",
        estimator: str = "all",
        n_drawn: int = 2,
        thinning_rate: float = 0.0,
        **kwargs: Any,
    ) -> None:
        check_mixture_arguments(n_components, n_importance_samples, mixture_weights)
        check_many_components(n_components, mixture_weights, encoder_sharing, estimator, n_drawn)
        super().__init__(*args, **kwargs)
        check_thinning(thinning_rate, self.gene_likelihood)  # which may be given by its place
        self.n_components = n_components
        self.n_importance_samples = n_importance_samples
        self.thinning_rate = float(thinning_rate)
        # scArches decides by ".0." and ".1." in a parameter's name whether to train it, so the
        # encoders are attributes of their own and not entries of a ModuleList.
        self.encoder_sharing, self.estimator, self.n_drawn = encoder_sharing, estimator, n_drawn
        if encoder_sharing == "trunk":
            self.component_offsets = nn.Parameter(initial_offsets(self.z_encoder, n_components))
        else:
            for s in range(1, n_components):
                self.add_module(f"z_encoder_{s}", _fresh_copy(self.z_encoder))
        if not isinstance(mixture_weights, str):
            mixture_weights = tuple(float(w) for w in mixture_weights)
        self.mixture_weights = mixture_weights
        if mixture_weights == "learned":
            self.mixture_logits = nn.Parameter(torch.zeros(n_components))
        elif mixture_weights == "amortized":
            self.weight_encoder = nn.Linear(self.z_encoder.mean_encoder.in_features, n_components)
            nn.init.zeros_(self.weight_encoder.weight)
            nn.init.zeros_(self.weight_encoder.bias)
        elif mixture_weights != "uniform":
            given = log_weights_from(mixture_weights, n_components)
            self.register_buffer("given_log_weights", given, persistent=False)

    @property
    def z_encoders(self) -> list[nn.Module]:
        """The S encoders, or the one that all share; the first is `z_encoder`."""
        if self.encoder_sharing == "trunk":
            return [self.z_encoder]
        others = [getattr(self, f"z_encoder_{s}") for s in range(1, self.n_components)]
        return [self.z_encoder, *others]


def _fresh_copy(encoder: nn.Module) -> nn.Module:
    """An encoder of the same architecture with weights of its own."""
    copy = deepcopy(encoder)
    for module in copy.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return copy


def _named_signature() -> inspect.Signature:
    """VAE's parameters and ours, all by name: scvi-tools rebuilds modules from this list."""
    own = inspect.signature(MixtureVAE.__init__).parameters.values()
    base = inspect.signature(VAE).parameters.values()
    return inspect.Signature(
        [*base, *(p for p in own if p.name != "self" and p.kind == p.KEYWORD_ONLY)]
    )


MixtureVAE.__signature__ = _named_signature()
