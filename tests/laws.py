"""The laws every part must keep, stated once; tests apply them to each part.

L importance samples a component, S components, B inputs, D latent dimensions.
"""

import math

import torch
from torch.distributions import Independent, MultivariateNormal, Normal

from scmixvi.core import MixturePosterior, Stage, component_elbos, jsd, miselbo, siwelbo


class LinearGaussian:
    """p(z) = N(0, I), p(x|z) = N(W z, noise^2 I), W with orthogonal columns, in float64.

    Its posterior N(mean, diag(variance)) and its log p(x) are known in closed form.
    """

    def __init__(self, n_inputs=5, n_latent=2, n_features=7, noise=0.6, seed=0):
        generator = torch.Generator().manual_seed(seed)
        draw = torch.randn(n_features, n_latent, generator=generator, dtype=torch.float64)
        scales = torch.linspace(0.5, 1.5, n_latent, dtype=torch.float64)
        self.weight = torch.linalg.qr(draw).Q * scales
        self.noise, self.n_latent, self.n_inputs = noise, n_latent, n_inputs
        self.x = torch.randn(n_inputs, n_features, generator=generator, dtype=torch.float64)
        precision = 1 + self.weight.square().sum(0) / noise**2
        self.variance = (1 / precision).expand(n_inputs, n_latent)
        self.mean = self.x @ self.weight / noise**2 / precision

    @property
    def log_evidence(self):
        eye = torch.eye(self.x.shape[1], dtype=torch.float64)
        covariance = self.weight @ self.weight.T + self.noise**2 * eye
        return MultivariateNormal(self.x.new_zeros(self.x.shape[1]), covariance).log_prob(self.x)

    def terms(self, posterior, n_samples):
        """(log_lik, log_prior, log_q_all) at stratified draws of a one-level posterior."""
        (z,), log_q_all = posterior.sample_stratified(n_samples)
        log_lik = Normal(z @ self.weight.T, self.noise).log_prob(self.x).sum(-1)
        return log_lik, Normal(0.0, 1.0).log_prob(z).sum(-1), log_q_all

    def exact_posterior(self, n_components, log_weights=None):
        """Every component is the true posterior."""
        loc = self.mean.expand(n_components, -1, -1)
        scale = self.variance.sqrt().expand(n_components, -1, -1)
        return gaussian_mixture(loc, scale, log_weights)

    def imperfect_posterior(self, n_components, log_weights=None, spread=0.4, seed=1):
        """Components scattered about the true posterior, of differing widths."""
        generator = torch.Generator().manual_seed(seed)
        shape = (n_components, *self.mean.shape)
        noise = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
        loc = self.mean + spread * noise[0]
        return gaussian_mixture(loc, self.variance.sqrt() * (spread * noise[1]).exp(), log_weights)


def gaussian_mixture(loc, scale, log_weights=None):
    """Mixture posterior with one Gaussian level, `loc` and `scale` `[S, B, D]`."""
    return MixturePosterior([Stage(lambda: Independent(Normal(loc, scale), 1))], log_weights)


def assert_draw_law(posterior, n_samples, tolerance=1e-9):
    """sample_stratified's scores are log_prob_all of its draws, gradients included in neither."""
    zs, log_q_all = posterior.sample_stratified(n_samples)
    n_samples_, n_components = log_q_all.shape[:2]
    assert n_samples_ == n_samples
    assert log_q_all.shape[2] == n_components
    assert all(z.shape[:2] == (n_samples, n_components) for z in zs)
    torch.testing.assert_close(log_q_all, posterior.log_prob_all(zs), rtol=0, atol=tolerance)


def assert_permutation_invariant(log_lik, log_prior, log_q_all, log_weights=None):
    """Renaming the components changes no bound and no divergence."""
    n_components = log_q_all.shape[2]
    order = torch.roll(torch.arange(n_components), 1)
    weights = None if log_weights is None else log_weights[order]
    moved = log_lik[:, order], log_prior[:, order], log_q_all[:, order][:, :, order]
    for objective in (miselbo, siwelbo):
        before = objective(log_lik, log_prior, log_q_all, log_weights)
        torch.testing.assert_close(objective(*moved, weights), before)
    torch.testing.assert_close(jsd(moved[2], weights), jsd(log_q_all, log_weights))


def assert_pooled_not_below_stratified(log_lik, log_prior, log_q_all, log_weights=None):
    """siwelbo >= miselbo for every draw (Jensen)."""
    pooled = siwelbo(log_lik, log_prior, log_q_all, log_weights)
    stratified = miselbo(log_lik, log_prior, log_q_all, log_weights)
    assert (pooled >= stratified - 1e-6 * stratified.abs()).all()


def assert_bound(draws, log_evidence, n_errors=4.0):
    """The mean over draws `[N, B]` is at most log p(x) `[B]`, to sampling error."""
    error = draws.std(0) / math.sqrt(draws.shape[0])
    assert (draws.mean(0) <= log_evidence + n_errors * error + 1e-9).all()


def assert_unbiased_weights(log_ratios, log_evidence, n_errors=4.0):
    """Importance weights `[N, B]`, given as logs, average p(x) to `n_errors` standard errors."""
    weights = (log_ratios - log_evidence).exp()
    error = weights.std(0) / math.sqrt(weights.shape[0])
    assert ((weights.mean(0) - 1).abs() <= n_errors * error + 1e-9).all()


def assert_same_mean(one, other, n_errors=2.0, largest=6.0):
    """Two estimates of a vector, each its mean and squared errors `[n]`, have one expectation.

    By the root mean square of the differences in units of their errors, which is about 1.
    """
    variance = one[1] + other[1]
    assert (variance > 0).any(), "an estimate that never varies tests nothing"
    known = variance > 1e-10 * variance.max()
    errors = (one[0] - other[0])[known] / variance[known].sqrt()
    assert errors.square().mean().sqrt() < n_errors, f"{errors.square().mean().sqrt():.2f} errors"
    assert errors.abs().max() < largest, f"{errors.abs().max():.2f} errors"
    torch.testing.assert_close(one[0][~known], other[0][~known], atol=1e-2, rtol=1e-2)


def assert_every_parameter_has_gradient(module, loss):
    """Each parameter of `module` gets a finite gradient from `loss` that is not all zero."""
    module.zero_grad()
    loss.backward()
    missing = [name for name, p in module.named_parameters() if p.grad is None]
    assert not missing, f"no gradient for {missing}"
    bad = [name for name, p in module.named_parameters() if not torch.isfinite(p.grad).all()]
    assert not bad, f"gradient not finite for {bad}"
    idle = [name for name, p in module.named_parameters() if not p.grad.any()]
    assert not idle, f"gradient all zero for {idle}"


def assert_jsd_is_bound_difference(log_lik, log_prior, log_q_all, log_weights=None):
    """At L = 1 the JSD equals MISELBO minus the weighted component ELBOs, draw by draw."""
    elbos = component_elbos(log_lik, log_prior, log_q_all)
    if log_weights is None:
        average = elbos.mean(0)
    else:
        weights = log_weights if log_weights.dim() == 2 else log_weights.unsqueeze(-1)
        average = (weights.exp() * elbos).sum(0)
    difference = miselbo(log_lik, log_prior, log_q_all, log_weights) - average
    torch.testing.assert_close(jsd(log_q_all, log_weights), difference)


def assert_log_determinant(flow, z0):
    """A flow's log|det dz/dz0| is that of the Jacobian by autograd; z0 is `[1, S, 1, D]`."""
    _, log_det = flow(z0)
    for s in range(z0.shape[1]):

        def one(point, s=s):
            points = torch.cat([z0[:, :s], point.reshape(1, 1, 1, -1), z0[:, s + 1 :]], dim=1)
            return flow(points)[0][0, s, 0]

        jacobian = torch.autograd.functional.jacobian(one, z0[0, s, 0])
        torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], log_det[0, s, 0])


def assert_round_trip(flow, z0):
    """Component s's inverse leads back to where s drew `[L, S, B, D]`, with one log-determinant."""
    z, log_det = flow(z0)
    assert (z - z0).abs().max() > 0.1, "a flow that does nothing proves nothing"
    back, log_det_there = flow.inverse(z.unsqueeze(2))
    n_components = z0.shape[1]
    assert back.shape[2] == (1 if flow.shared else n_components)
    own = [
        t.expand(*t.shape[:2], n_components, *t.shape[3:]).diagonal(dim1=1, dim2=2).movedim(-1, 1)
        for t in (back, log_det_there)
    ]
    torch.testing.assert_close(own[0], z0)
    torch.testing.assert_close(own[1], log_det)


def assert_integrates_to_1(log_prob, n_dims=2, half_width=20.0, step=0.1, tolerance=1e-4):
    """A log density of points `[N, D]`, summed over a grid of D dimensions, has mass 1."""
    axis = torch.arange(-half_width, half_width + step / 2, step, dtype=torch.float64)
    points = torch.cartesian_prod(*[axis] * n_dims).reshape(-1, n_dims)
    with torch.no_grad():
        mass = log_prob(points).logsumexp(0).exp().item() * step**n_dims
    assert abs(mass - 1) < tolerance, f"the density has mass {mass}"


def assert_draws_follow(log_prob, draws, half_width=20.0, step=0.1, n_errors=4.5):
    """Draws `[N, D]` have the density: waves in several directions average as on a grid.

    Unlike moments a dimension, these see members drawn for each dimension by itself.
    """
    n_dims = draws.shape[-1]
    axis = torch.arange(-half_width, half_width + step / 2, step, dtype=torch.float64)
    points = torch.cartesian_prod(*[axis] * n_dims).reshape(-1, n_dims)
    with torch.no_grad():
        mass = log_prob(points).exp() * step**n_dims
    generator = torch.Generator().manual_seed(0)
    waves = 0.7 * torch.randn(n_dims, 12, generator=generator, dtype=torch.float64)
    angles = draws.double() @ waves, points @ waves
    seen, expected = (torch.cat([angle.cos(), angle.sin()], -1) for angle in angles)
    error = seen.std(0) / math.sqrt(len(draws))
    off = (seen.mean(0) - mass @ expected).abs()
    assert (off <= n_errors * error + 1e-6).all(), f"off by {(off / error).max():.1f} errors"
