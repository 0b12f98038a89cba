"""Tables and figures of the single-cell experiments, beside the paper's numbers."""

from pathlib import Path

from scmixvi.experiments import cortex, decoders, integration, refinement
from scmixvi.experiments._report_cortex import cortex_figure, cortex_tables
from scmixvi.experiments._report_decoders import decoders_figure, decoders_tables
from scmixvi.experiments._report_integration import integration_figure, integration_tables
from scmixvi.experiments._report_monotone import (
    ESTIMATORS,
    all_nlls,
    monotone_figure,
    monotone_tables,
)
from scmixvi.experiments._report_refinement import refinement_figure, refinement_tables
from scmixvi.experiments._tables import load


def write(results: Path, output: Path) -> None:
    """Write the table of every single-cell experiment as .md, and its figure as .png."""
    runs = load(results, cortex.RESULT.name)
    (output / "cortex.md").write_text(cortex_tables(runs))
    cortex_figure(runs, output / "cortex.png")
    runs = load(results, decoders.RESULT.name)
    (output / "decoders.md").write_text(decoders_tables(runs))
    decoders_figure(runs, output / "decoders.png")
    runs = load(results, refinement.RESULT.name)
    (output / "refinement.md").write_text(refinement_tables(runs))
    refinement_figure(runs, output / "refinement.png")
    nlls = {estimator: all_nlls(results, estimator) for estimator in ESTIMATORS}
    (output / "monotone.md").write_text(monotone_tables(nlls))
    monotone_figure(nlls, output / "monotone.png")
    runs = load(results, integration.RESULT.name)
    (output / "integration.md").write_text(integration_tables(runs))
    integration_figure(runs, output / "integration.png")
