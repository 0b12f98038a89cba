"""Image VAEs with mixture posteriors: parts over `scmixvi.core`, and the paper's recipes."""

from scmixvi.core.modes import evaluating
from scmixvi.image import recipes
from scmixvi.image._evaluation import bits_per_dim
from scmixvi.image._scoring import BoundTerms
from scmixvi.image.vae import ImageVAE

__all__ = ["BoundTerms", "ImageVAE", "bits_per_dim", "evaluating", "recipes"]
