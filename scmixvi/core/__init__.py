"""The shared loss core: mixture posteriors and the bounds that train them.

Everything here is torch and the standard library. One letter has one meaning:
L importance samples a component, S components, B inputs (cells or images), D latent dimensions.
"""

from scmixvi.core.fitting import Ascent, fit_posterior, fitted_gaussians, refined_posterior
from scmixvi.core.objectives import (
    component_elbos,
    jsd,
    linear_warmup,
    log_mixture,
    miselbo,
    siwelbo,
)
from scmixvi.core.posterior import MixturePosterior, Stage
from scmixvi.core.priors import (
    Chain,
    GaussianConditional,
    GaussianMixture,
    Level,
    Prior,
    StandardNormal,
    VampPrior,
    diagonal_normal,
)
from scmixvi.core.subsets import TRAINING_ESTIMATORS, check_estimator, draw_components
from scmixvi.core.weights import log_weights_from

__all__ = [
    "TRAINING_ESTIMATORS",
    "Ascent",
    "Chain",
    "GaussianConditional",
    "GaussianMixture",
    "Level",
    "MixturePosterior",
    "Prior",
    "Stage",
    "StandardNormal",
    "VampPrior",
    "check_estimator",
    "component_elbos",
    "diagonal_normal",
    "draw_components",
    "fit_posterior",
    "fitted_gaussians",
    "jsd",
    "linear_warmup",
    "log_mixture",
    "log_weights_from",
    "miselbo",
    "refined_posterior",
    "siwelbo",
]
