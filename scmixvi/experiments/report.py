"""Tables and figures from the experiments' JSON: `python -m scmixvi.experiments.report`.

Reads what is in `scmixvi/experiments/results` and writes Markdown tables and PNG figures, which
the documentation shows. An experiment that has not been run appears as "not run".
"""

import argparse
import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from scmixvi.experiments import _report_images, _report_singlecell, density2d
from scmixvi.experiments._common import markdown
from scmixvi.records import read

RESULTS = Path(__file__).parent / "results"
LABELS = {
    "iwvi": "one Gaussian, L = 30",
    "iaf": "IAF, T = 30",
    "ensemble": "ensemble, S = 30",
    "mixture": "mixture, S = 30",
    "dm_pmc": "DM-PMC, S = 30",
}


def by_seed(runs: dict, prefix: str) -> list[dict]:
    """The runs of all seeds of one setting."""
    return [run for key, run in runs.items() if key.startswith(f"{prefix}/seed=")]


def mean_and_spread(values: list[float], digits: int = 3) -> str:
    """Mean, and the range over seeds where there are several."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def density2d_table(runs: dict) -> str:
    """Divergences, mass on the modes and evidence for every target and method."""
    rows = []
    for target in density2d.TARGETS:
        for method, label in LABELS.items():
            found = by_seed(runs, f"{target}/{method}")
            if not found:
                rows.append([target, label, *["not run"] * 4])
                continue
            lightest = min(found[0]["target_mass"], key=found[0]["target_mass"].__getitem__)
            rows.append(
                [
                    target,
                    label,
                    mean_and_spread([run["kl_q_p"] for run in found]),
                    mean_and_spread([run["kl_p_q"] for run in found]),
                    f"{lightest}: {mean_and_spread([run['mass'][lightest] for run in found])}",
                    f"{mean_and_spread([run['evidence_mean'] for run in found])} ± "
                    f"{statistics.fmean([run['evidence_sd'] for run in found]):.3f}",
                ]
            )
    header = ("target", "approximation", "KL(q ‖ p)", "KL(p ‖ q)", "mass on", "evidence")
    return markdown(header, rows)


def density2d_figure(runs: dict, path: Path) -> None:
    """Draws of every approximation beside the target, first seed (Fig. 1 of the paper)."""
    columns = ["target", *LABELS]
    fig, axes = plt.subplots(
        len(density2d.TARGETS), len(columns), figsize=(2 * len(columns), 6.2), squeeze=False
    )
    points = density2d.grid()
    for row, (name, make) in zip(axes, density2d.TARGETS.items(), strict=True):
        density = make().log_prob(points).exp().reshape(density2d.N_GRID, -1).T
        row[0].imshow(density, origin="lower", extent=[-density2d.REACH, density2d.REACH] * 2)
        row[0].set_ylabel(name)
        for ax, method in zip(row[1:], LABELS, strict=True):
            found = by_seed(runs, f"{name}/{method}")
            if found:
                draws = torch.tensor(found[0]["draws"])
                ax.scatter(*draws.T, s=2, alpha=0.5)
            else:
                ax.text(0, 0, "not run", ha="center")
        for ax in row:
            ax.set(xlim=(-2.5, 2.5), ylim=(-2.5, 2.5), xticks=[], yticks=[], aspect="equal")
    for ax, column in zip(axes[0], columns, strict=True):
        ax.set_title(LABELS.get(column, column), fontsize=9)
    fig.tight_layout()
    fig.savefig(path, dpi=80)
    plt.close(fig)


def main() -> None:
    """Write every table and figure into a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    content = read(arguments.results / density2d.RESULT.name, {"runs": {}})
    table = density2d_table(content["runs"])
    (arguments.output / "density2d.md").write_text(table)
    density2d_figure(content["runs"], arguments.output / "density2d.png")
    print(table)
    _report_singlecell.write(arguments.results, arguments.output)
    _report_images.write(arguments.results, arguments.output)


if __name__ == "__main__":
    main()
