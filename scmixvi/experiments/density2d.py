"""Two-dimensional targets (Fig. 1 of the paper): how well is a density covered, and by what.

Two targets, a ring and an uneven pair of Gaussians, and approximations of each:

iwvi
    one Gaussian, importance-weighted with L = 30;
iaf
    an inverse autoregressive flow of T = 30 steps;
ensemble
    S = 30 Gaussians, each trained by itself;
mixture
    S = 30 Gaussians, trained jointly by MISELBO;
dm_pmc/0.1, 0.3, 0.5
    S = 30 Gaussians of that standard deviation, whose locations are adapted by
    deterministic-mixture population Monte Carlo (Elvira et al. 2017), the adaptive importance
    sampler of sections 2.1 and 2.3. It has 100 rounds where the others have 5000 steps.

For each it records KL(q || p) from 200,000 draws of q and KL(p || q) by quadrature, the mass on
each mode, and mean and standard deviation over repeats of the evidence estimate from 1000 draws
(the targets are normalised, so the evidence is 1). Seed 0 also keeps some draws, for the figure.

    python -m scmixvi.experiments.density2d --seed 0
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from scmixvi.core import MixturePosterior, Stage, component_elbos, log_mixture, miselbo
from scmixvi.experiments._common import parse, run_missing

RESULT = Path(__file__).parent / "results" / "density2d.json"
N_COMPONENTS, N_FLOW_STEPS, N_IWVI_SAMPLES = 30, 30, 30
LEARNING_RATE, N_STEPS, N_DRAWS = 0.1, 5000, 100
REACH, N_GRID = 3.0, 601
DM_PMC_SCALES, N_ROUNDS_SHARE = (0.1, 0.3, 0.5), 0.02
N_SHOWN = 240


def grid() -> Tensor:
    """Points of a square that holds all mass, `[N_GRID^2, 2]`."""
    axis = torch.linspace(-REACH, REACH, N_GRID)
    return torch.cartesian_prod(axis, axis)


def log_cell() -> float:
    """Log area of a grid cell."""
    return 2 * math.log(2 * REACH / (N_GRID - 1))


class Target:
    """A density on the plane, normalised by quadrature.

    Parameters
    ----------
    log_density
        From `[..., 2]` to `[...]`, up to a constant.
    modes
        Name of a region to a function from `[..., 2]` to bool `[...]`.
    """

    def __init__(
        self,
        log_density: Callable[[Tensor], Tensor],
        modes: dict[str, Callable[[Tensor], Tensor]],
    ) -> None:
        self.log_density, self.modes = log_density, modes
        self.log_norm = (log_density(grid()).logsumexp(0) + log_cell()).item()

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density, `[..., 2] -> [...]`, in nats."""
        return self.log_density(z) - self.log_norm


def ring() -> Target:
    """Log p(z) = -(|z| - 0.9)^2 / 0.001, as in the released code (R = 1, dr = 0.1)."""
    quadrants = {
        f"quadrant {name}": lambda z, a=a, b=b: (a * z[..., 0] > 0) & (b * z[..., 1] > 0)
        for name, a, b in (("++", 1, 1), ("+-", 1, -1), ("-+", -1, 1), ("--", -1, -1))
    }
    return Target(lambda z: -(z.norm(dim=-1) - 0.9).square() / 0.001, quadrants)


def bimodal(scale: float = math.sqrt(0.1)) -> Target:
    """0.8 N(1, s^2 I) + 0.2 N(-1, s^2 I): variance 0.1 in the text, s = 0.5 in the code."""

    def log_density(z: Tensor) -> Tensor:
        heavy, light = (Normal(m, scale).log_prob(z).sum(-1) for m in (1.0, -1.0))
        return torch.logaddexp(heavy + math.log(0.8), light + math.log(0.2))

    sides = {
        "heavy mode (0.8)": lambda z: z.sum(-1) > 0,
        "light mode (0.2)": lambda z: z.sum(-1) <= 0,
    }
    return Target(log_density, sides)


TARGETS: dict[str, Callable[[], Target]] = {
    "ring": ring,
    "bimodal": bimodal,
    "bimodal, s = 0.5": lambda: bimodal(0.5),
}


class Gaussians(nn.Module):
    """S Gaussians with diagonal covariance, all started at N(0, I); B = 1."""

    def __init__(self, n_components: int, flow: nn.Module | None = None) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(n_components, 1, 2))
        self.log_scale = nn.Parameter(torch.zeros(n_components, 1, 2))
        self.flow = flow

    def forward(self) -> MixturePosterior:
        """The mixture as the core sees it."""
        scale = self.log_scale.exp()
        base = Independent(Normal(self.loc, scale, validate_args=False), 1, validate_args=False)
        return MixturePosterior([Stage(lambda: base, self.flow)])


def mixture_bound(log_p: Tensor, log_q_all: Tensor) -> Tensor:
    """MISELBO with one sample, averaged over the draws."""
    log_mix = log_mixture(log_q_all)
    return (log_p - log_mix).mean()


def ensemble_bound(log_p: Tensor, log_q_all: Tensor) -> Tensor:
    """Sum of the components' own ELBOs: each is trained as if alone."""
    return component_elbos(log_p, torch.zeros_like(log_p), log_q_all).sum()


def importance_weighted_bound(log_p: Tensor, log_q_all: Tensor) -> Tensor:
    """IWELBO with L = 30 (Eq. 13): the draws are rows of L."""
    rows = log_p.reshape(N_IWVI_SAMPLES, 1, -1)
    scores = log_q_all.reshape(N_IWVI_SAMPLES, 1, 1, -1)
    return miselbo(rows, torch.zeros_like(rows), scores).mean()


def fit(
    target: Target,
    model: Gaussians,
    bound: Callable[[Tensor, Tensor], Tensor],
    n_steps: int,
    n_draws: int,
) -> MixturePosterior:
    """Adam on minus the bound; raises FloatingPointError if that is no longer finite."""
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    for step in range(n_steps):
        (z,), log_q_all = model().sample_stratified(n_draws)
        loss = -bound(target.log_prob(z), log_q_all)
        if not loss.isfinite():
            raise FloatingPointError(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model()


@torch.no_grad()
def dm_pmc(target: Target, n_rounds: int, n_draws: int, scale: float) -> MixturePosterior:
    """Deterministic-mixture population Monte Carlo with N(loc_s, scale^2 I) proposals.

    Every round draws from all proposals, weighs the draws by p over the whole mixture, and
    resamples the S locations from them. The scale stays.
    """
    loc = torch.randn(N_COMPONENTS, 1, 2)
    for _ in range(n_rounds):
        posterior = _fixed(loc, scale)
        (z,), log_q_all = posterior.sample_stratified(n_draws)
        log_weight = (target.log_prob(z) - log_mixture(log_q_all)).flatten()
        drawn = torch.multinomial(log_weight.softmax(0), N_COMPONENTS, replacement=True)
        loc = z.reshape(-1, 1, 2)[drawn]
    return _fixed(loc, scale)


def _fixed(loc: Tensor, scale: float) -> MixturePosterior:
    base = Independent(Normal(loc, torch.full_like(loc, scale)), 1)
    return MixturePosterior([Stage(lambda: base)])


def approximate(method: str, target: Target, n_steps: int) -> MixturePosterior:
    """Fit one of the `METHODS`."""
    if method.startswith("dm_pmc/"):
        rounds = round(N_ROUNDS_SHARE * n_steps)
        return dm_pmc(target, rounds, N_DRAWS, float(method.removeprefix("dm_pmc/")))
    if method == "iaf":
        from scmixvi.image.flows import InverseAutoregressiveFlow

        flow = InverseAutoregressiveFlow(2, N_FLOW_STEPS, (10, 10))
        return fit(target, Gaussians(1, flow), mixture_bound, n_steps, N_DRAWS)
    if method == "iwvi":
        draws = N_IWVI_SAMPLES * (-(-N_DRAWS // N_IWVI_SAMPLES))
        return fit(target, Gaussians(1), importance_weighted_bound, n_steps, draws)
    bound = {"ensemble": ensemble_bound, "mixture": mixture_bound}[method]
    return fit(target, Gaussians(N_COMPONENTS), bound, n_steps, N_DRAWS)


METHODS = ("iwvi", "iaf", "ensemble", "mixture", *(f"dm_pmc/{s}" for s in DM_PMC_SCALES))


@torch.no_grad()
def figures(target: Target, posterior: MixturePosterior, n_repeats: int = 200) -> dict:
    """Divergences, mass on each mode, and the evidence estimate.

    What is an average over q comes from draws of q, for a flow may be narrower than a cell of
    the grid; what is an average over the target comes from quadrature, and is left out where the
    inverse of a flow overflows on the grid.
    """
    points = grid()
    log_p = target.log_prob(points)
    log_q = torch.cat([posterior.log_prob([p.unsqueeze(1)])[:, 0] for p in points.split(2**15)])
    p = (log_p + log_cell()).exp()
    n_components = posterior.stages[0].conditional().batch_shape[0]
    log_ratios, inside = [], {name: [] for name in target.modes}
    for _ in range(n_repeats):
        (z,), log_q_all = posterior.sample_stratified(max(1, 1000 // n_components))
        log_ratios.append((target.log_prob(z) - log_mixture(log_q_all)).flatten())
        for name, region in target.modes.items():
            inside[name].append(region(z).float().mean())
    log_ratio = torch.stack(log_ratios)
    estimates = log_ratio.exp().mean(1)
    quadrature = (p * (log_p - log_q)).sum().item()
    return {
        "kl_q_p": -log_ratio.mean().item(),
        **({"kl_p_q": quadrature} if math.isfinite(quadrature) else {}),
        "mass": {name: torch.stack(share).mean().item() for name, share in inside.items()},
        "target_mass": {
            name: p[region(points)].sum().item() for name, region in target.modes.items()
        },
        "evidence_mean": estimates.mean().item(),
        "evidence_sd": estimates.std().item(),
    }


@torch.no_grad()
def shown(posterior: MixturePosterior) -> dict[str, list[float]]:
    """Draws for the figure; draw i is one of component i % S."""
    n_components = posterior.stages[0].conditional().batch_shape[0]
    (z,), _ = posterior.sample_stratified(N_SHOWN // n_components)
    x, y = z.reshape(-1, 2).T.tolist()
    return {name: [round(v, 2) for v in values] for name, values in (("x", x), ("y", y))}


def job(target: str, method: str, n_steps: int, keep_draws: bool) -> dict:
    """Fit one approximation of one target; what is recorded of it, or when it diverged."""
    density = TARGETS[target]()
    try:
        posterior = approximate(method, density, n_steps)
    except FloatingPointError as diverged:
        return {"diverged_after_steps": diverged.args[0]}
    found = figures(density, posterior)
    return found | ({"draws": shown(posterior)} if keep_draws else {})


def main(argv: Sequence[str] | None = None) -> None:
    """Fit what is not yet in the JSON for this seed."""
    arguments = parse(__doc__, RESULT, argv)
    n_steps = 100 if arguments.smoke else N_STEPS
    jobs = {
        f"{target}/{method}": partial(job, target, method, n_steps, arguments.seed == 0)
        for target in TARGETS
        for method in METHODS
    }
    run_missing(arguments, jobs)


if __name__ == "__main__":
    main()
