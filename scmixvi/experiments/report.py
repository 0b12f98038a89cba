"""Tables and figures from the experiments' JSON: `python -m scmixvi.experiments.report`.

Reads what is in `scmixvi/experiments/results` and writes Markdown tables and PNG figures, which
the documentation shows. An experiment that has not been run appears as "not run".
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from scmixvi.experiments._reports import images as _report_images
from scmixvi.experiments._reports.calibration import calibration_figure, calibration_tables
from scmixvi.experiments._reports.cortex import cortex_figure, cortex_tables
from scmixvi.experiments._reports.decoders import decoders_figure, decoders_tables
from scmixvi.experiments._reports.density2d import density2d_figure, density2d_tables
from scmixvi.experiments._reports.depths import depths_figure, depths_tables
from scmixvi.experiments._reports.halves import halves_figure, halves_tables
from scmixvi.experiments._reports.inference_gap import inference_gap_figure, inference_gap_tables
from scmixvi.experiments._reports.integration import integration_figure, integration_tables
from scmixvi.experiments._reports.monotone import (
    ESTIMATORS,
    all_gaps,
    all_nlls,
    image_notes,
    monotone_figure,
    monotone_tables,
)
from scmixvi.experiments._reports.planted import planted_figure, planted_tables
from scmixvi.experiments._reports.refinement import refinement_figure, refinement_tables
from scmixvi.experiments._reports.tables import load
from scmixvi.experiments._reports.thinning import thinning_figure, thinning_tables

RESULTS = Path(__file__).parent / "results"
REPORTS = {
    "density2d": (density2d_tables, density2d_figure),
    "cortex": (cortex_tables, cortex_figure),
    "decoders": (decoders_tables, decoders_figure),
    "refinement": (refinement_tables, refinement_figure),
    "thinning": (thinning_tables, thinning_figure),
    "inference_gap": (inference_gap_tables, inference_gap_figure),
    "calibration": (calibration_tables, calibration_figure),
    "depths": (depths_tables, depths_figure),
    "halves": (halves_tables, halves_figure),
    "integration": (integration_tables, integration_figure),
    "planted": (planted_tables, planted_figure),
}
"""An experiment whose report is of its own JSON alone, its tables and its figure."""


def write(results: Path, output: Path) -> None:
    """Write every table (.md) and figure (.png) from the JSON in a folder, and print the tables."""
    output.mkdir(parents=True, exist_ok=True)
    texts = {}
    for name, (tables, figure) in REPORTS.items():
        runs = load(results, f"{name}.json")
        texts[name] = tables(runs)
        figure(runs, output / f"{name}.png")
    nlls = {estimator: all_nlls(results, estimator) for estimator in ESTIMATORS}
    texts["monotone"] = monotone_tables(nlls, all_gaps(results), image_notes(results))
    monotone_figure(nlls, output / "monotone.png")
    for name, text in texts.items():
        (output / f"{name}.md").write_text(text)
        print(text)
    _report_images.write(results, output)


def main() -> None:
    """Read the arguments and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    write(arguments.results, arguments.output)


if __name__ == "__main__":
    main()
