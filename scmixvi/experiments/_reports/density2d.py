"""The two-dimensional targets: divergences, modes and evidence, and Fig. 1 of the paper."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from scmixvi.experiments import density2d
from scmixvi.experiments._common import by_seed, cell, markdown
from scmixvi.experiments._reports.tables import Runs, joined, pick, seeds

LABELS = {
    "iwvi": "one Gaussian, L = 30",
    "iaf": "IAF, T = 30",
    "ensemble": "ensemble, S = 30",
    "mixture": "mixture, S = 30",
} | {f"dm_pmc/{s}": f"DM-PMC, S = 30, sd {s}" for s in density2d.DM_PMC_SCALES}
PAIRS = [name for name in density2d.TARGETS if name != "ring"]
FIGURES = {
    "KL(q ‖ p)": "kl_q_p",
    "KL(p ‖ q)": "kl_p_q",
    "evidence": "evidence_mean",
    "sd of an estimate": "evidence_sd",
}


def density2d_tables(runs: Runs) -> str:
    """Divergences, evidence and mass on the modes for every target and method."""
    rows = []
    for target in density2d.TARGETS:
        for method, label in LABELS.items():
            found = [pick(runs, f"{target}/{method}", key) for key in FIGURES.values()]
            label += _failures(runs, f"{target}/{method}")
            rows.append([target, label, *(cell(list(values.values()), 3) for values in found)])
    parts = [
        f"{seeds(runs)} Mean ± half the 95 % t-interval over seeds; nats. KL(q ‖ p) is from "
        "200,000 draws of q, KL(p ‖ q) by quadrature. The evidence, which is 1, is estimated from "
        "1000 draws, 200 times a seed: the mean estimate, and the standard deviation of one. Where "
        "the inverse of a flow overflows on the grid, KL(p ‖ q) is that of the other seeds.",
        markdown(["target", "approximation", *FIGURES], rows),
        f"**Mass on each mode of the pairs**, which have {_shares(PAIRS[0])}.",
        _mass_table(runs, PAIRS),
        f"**Mass on each quadrant of the ring**, which has {_shares('ring')}.",
        _mass_table(runs, ["ring"]),
    ]
    return joined(parts)


def _failures(runs: Runs, job: str) -> str:
    """In how many seeds a fit diverged, or the inverse of a flow overflowed."""
    found = by_seed(runs, job)
    n_diverged = len(pick(runs, job, "diverged_after_steps"))
    n_overflowed = len(found) - n_diverged - len(pick(runs, job, "kl_p_q"))
    said = {"diverged": n_diverged, "no KL(p ‖ q)": n_overflowed}
    return "".join(f" ({what} in {n} of {len(found)})" for what, n in said.items() if n)


def _modes(target: str) -> list[str]:
    return list(density2d.TARGETS[target]().modes)


def _shares(target: str) -> str:
    """The target's own mass on each mode, by quadrature."""
    density, points = density2d.TARGETS[target](), density2d.grid()
    p = (density.log_prob(points) + density2d.log_cell()).exp()
    return ", ".join(f"{p[region(points)].sum():.2f}" for region in density.modes.values())


def _mass_table(runs: Runs, targets: list[str]) -> str:
    modes = _modes(targets[0])
    rows = []
    for target in targets:
        for method, label in LABELS.items():
            found = [pick(runs, f"{target}/{method}", "mass", mode) for mode in modes]
            rows.append([target, label, *(cell(list(values.values()), 3) for values in found)])
    return markdown(["target", "approximation", *modes], rows)


def density2d_figure(runs: Runs, path: Path) -> None:
    """Draws of every approximation beside the target, coloured by component (Fig. 1)."""
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
            draws = next(iter(pick(runs, f"{name}/{method}", "draws").values()), None)
            if draws is None:
                ax.text(0, 0, "not run", ha="center")
                continue
            several = method not in ("iwvi", "iaf")
            component = np.arange(len(draws["x"])) % (density2d.N_COMPONENTS if several else 1)
            ax.scatter(draws["x"], draws["y"], s=3, c=component, cmap="turbo", alpha=0.7)
        for ax in row:
            ax.set(xlim=(-2.5, 2.5), ylim=(-2.5, 2.5), xticks=[], yticks=[], aspect="equal")
    for ax, column in zip(axes[0], columns, strict=True):
        ax.set_title(LABELS.get(column, column), fontsize=9)
    fig.tight_layout()
    fig.savefig(path, dpi=70)
    plt.close(fig)
