"""Image VAEs with mixture posteriors: parts over `scmixvi.core`, and the paper's recipes."""

from scmixvi.image import recipes
from scmixvi.image.vae import BoundTerms, ImageVAE, bits_per_dim, evaluating

__all__ = ["BoundTerms", "ImageVAE", "bits_per_dim", "evaluating", "recipes"]
