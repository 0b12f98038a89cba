"""Mixture posteriors for scvi-tools and image VAEs, trained jointly by MISELBO."""

from scmixvi import datasets

__all__ = ["datasets"]
__version__ = "0.1.0"
