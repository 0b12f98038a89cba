"""MixtureSCVI: scvi-tools' SCVI with a mixture of S encoders as its posterior."""

from scmixvi.singlecell._model import MixtureSCVI
from scmixvi.singlecell._module import MixtureVAE

__all__ = ["MixtureSCVI", "MixtureVAE"]
