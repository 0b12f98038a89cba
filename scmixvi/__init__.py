"""Mixture posteriors for scvi-tools and image VAEs, trained jointly by MISELBO."""

__version__ = "0.1.0"
