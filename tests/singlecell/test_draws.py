"""Draws and scores of the compiled loop are those of the core."""

import math

import pytest
import torch

from scmixvi.singlecell._parts import draws as _draws
from scmixvi.singlecell._parts.distributions import MixtureOfNormals, log_standard_normal

SHAPES = [(1, 1, 5, 10), (3, 4, 7, 10), (2, 3, 6, 1), (1, 5, 4, 37)]  # L, S, n, D


def mixture(n_components, n_cells, n_latent, dtype=torch.float32):
    torch.manual_seed(0)
    loc = torch.randn(n_cells, n_components, n_latent, dtype=torch.float64)
    scale = torch.rand(n_cells, n_components, n_latent, dtype=torch.float64) + 0.1
    parts = (p.to(dtype).requires_grad_() for p in (loc, scale))
    return MixtureOfNormals(*parts)


def weighted(parts):
    torch.manual_seed(2)
    return sum((torch.randn(p.shape, dtype=torch.float64) * p.double()).sum() for p in parts)


def by_formula(qz, noise, drawn):
    """The definition, in float64."""
    loc, scale = (p.transpose(0, 1) for p in (qz.c_loc, qz.c_scale))
    z = loc[drawn] + scale[drawn] * noise.double()
    scores = torch.distributions.Normal(loc, scale).log_prob(z.unsqueeze(2)).sum(-1)
    return z, scores, log_standard_normal(z)


def both(shape, drawn):
    """What the loop gives, and the definition, of the same noise."""
    n_samples, n_components, n_cells, n_latent = shape
    qz = mixture(n_components, n_cells, n_latent)
    exact = mixture(n_components, n_cells, n_latent, torch.float64)
    places = torch.arange(n_components) if drawn is None else drawn
    torch.manual_seed(1)
    found = _draws.stratified_draws(qz, n_samples, drawn)
    torch.manual_seed(1)
    noise = torch.randn(n_samples, len(places), n_cells, n_latent)
    return qz, found, exact, by_formula(exact, noise, places)


def assert_near(found, expected, tolerance=2e-6):
    for own, other in zip(found, expected, strict=True):
        assert own.shape == other.shape
        assert float((own.double() - other).abs().max() / other.abs().max()) < tolerance


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("drawn", [None, torch.tensor([2, 0])])
def test_draws_scores_and_gradients_are_those_of_the_definition(shape, drawn):
    if drawn is not None and shape[1] < 3:
        drawn = torch.tensor([0, 0])
    qz, found, exact, expected = both(shape, drawn)
    assert_near([t.detach() for t in found], [t.detach() for t in expected])
    parameters, others = (qz.c_loc, qz.c_scale), (exact.c_loc, exact.c_scale)
    slopes = torch.autograd.grad(weighted(found), parameters)
    assert_near(slopes, torch.autograd.grad(weighted(expected), others), 1e-5)


@pytest.mark.parametrize("used", [(0,), (1,), (2,), (0, 2)])
def test_gradients_of_some_of_what_it_returns(used):
    qz, found, exact, expected = both((2, 3, 6, 4), None)
    slopes = torch.autograd.grad(weighted([found[i] for i in used]), (qz.c_loc, qz.c_scale))
    others = exact.c_loc, exact.c_scale
    assert_near(slopes, torch.autograd.grad(weighted([expected[i] for i in used]), others), 1e-5)


def test_gradients_of_gradients():
    qz, found, exact, expected = both((2, 3, 6, 4), None)

    def curvature(parts, parameters):
        slopes = torch.autograd.grad(weighted(parts), parameters, create_graph=True)
        return torch.autograd.grad(sum(s.square().sum() for s in slopes), parameters)

    found = curvature(found, (qz.c_loc, qz.c_scale))
    assert_near(found, curvature(expected, (exact.c_loc, exact.c_scale)), 1e-5)


def test_the_stream_of_random_numbers_is_the_cores():
    qz = mixture(3, 6, 4)
    torch.manual_seed(1)
    u, scores, _ = _draws.stratified_draws(qz, 2)
    after = torch.rand(())
    torch.manual_seed(1)
    (z,), log_q_all = qz.posterior.sample_stratified(2)
    assert torch.equal(after, torch.rand(()))
    torch.testing.assert_close(u, z)
    torch.testing.assert_close(scores, log_q_all)


def test_torchs_default_type_does_not_matter():
    qz = mixture(3, 6, 4)
    torch.set_default_dtype(torch.float64)
    try:
        u, scores, _ = _draws.stratified_draws(qz, 2)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(scores, qz.posterior.log_prob_all((u,)))


def test_other_types_are_left_to_the_core():
    qz = mixture(3, 6, 4, torch.float64)
    u, scores, log_prior = _draws.stratified_draws(qz, 2)
    assert {t.dtype for t in (u, scores, log_prior)} == {torch.float64}
    torch.testing.assert_close(scores, qz.posterior.log_prob_all((u,)))


@pytest.mark.parametrize("width", [1e-12, 1e12])
def test_extreme_widths(width):
    loc, scale = torch.zeros(2, 1, 12), torch.full((2, 1, 12), width)
    torch.manual_seed(1)
    _, scores, _ = _draws.stratified_draws(MixtureOfNormals(loc, scale), 1)
    torch.manual_seed(1)
    length = torch.randn(1, 1, 2, 12).square().sum(-1)
    expected = -0.5 * length - 12 * (math.log(width) + 0.5 * math.log(2 * math.pi))
    torch.testing.assert_close(scores[:, :, 0], expected)


def test_what_is_not_a_number_stays_so():
    loc = torch.zeros(3, 2, 4)
    loc[1, 0, 2] = math.nan
    qz = MixtureOfNormals(loc, torch.ones(3, 2, 4), validate_args=False)
    u, scores, log_prior = _draws.stratified_draws(qz, 1)
    assert u[0, 0, 1].isnan().any()
    assert scores[..., 1].isnan().sum() == 3  # but for the other component's own
    assert log_prior[0, 0, 1].isnan()
    assert scores[..., [0, 2]].isfinite().all()


def test_weights_whose_gradients_are_not_wanted():
    qz = mixture(2, 3, 4)
    loc = qz.c_loc.detach()
    (u, *_) = _draws.stratified_draws(MixtureOfNormals(loc, qz.c_scale), 1)
    (slope,) = torch.autograd.grad(u.sum(), qz.c_scale)
    assert slope.isfinite().all()
    with torch.no_grad():
        assert not _draws.stratified_draws(qz, 1)[0].requires_grad
