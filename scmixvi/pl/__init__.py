"""Plots in scanpy's style: `show`, `save`, `ax`, and matplotlib axes as the result."""

from scmixvi.pl._compare import compare
from scmixvi.pl._components import components
from scmixvi.pl._diversity import posterior_diversity
from scmixvi.pl._training import training

__all__ = ["compare", "components", "posterior_diversity", "training"]
