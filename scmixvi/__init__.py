"""Mixture posteriors for scvi-tools and image VAEs, trained jointly by MISELBO."""

from scmixvi import datasets, pl
from scmixvi.singlecell import MixtureSCVI

__version__ = "0.1.0"

__all__ = ["MixtureSCVI", "datasets", "pl"]
