"""The scvi-facing mixture: density, moments, draws, and what scvi-tools does to it."""

import math

import pytest
import torch
from scvi.distributions._utils import DistributionConcatenator, subset_distribution
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from scmixvi.singlecell._parts.distributions import MixtureOfNormals

N, S, D = 5, 3, 2


@pytest.fixture
def qz():
    torch.manual_seed(1)
    log_weights = torch.randn(N, S).log_softmax(-1)
    return MixtureOfNormals(torch.randn(N, S, D), torch.rand(N, S, D) + 0.3, log_weights)


def reference(qz):
    components = Independent(Normal(qz.c_loc, qz.c_scale), 1)
    return MixtureSameFamily(Categorical(logits=qz.c_log_weights), components)


def test_density_is_that_of_torchs_mixture(qz):
    z = torch.randn(7, N, D)
    assert qz.log_prob(z).shape == (7, N, 1)
    torch.testing.assert_close(qz.log_prob(z).sum(-1), reference(qz).log_prob(z))


def test_moments_are_those_of_torchs_mixture(qz):
    torch.testing.assert_close(qz.loc, reference(qz).mean)
    torch.testing.assert_close(qz.scale, reference(qz).stddev)


def test_one_component_is_a_normal():
    loc, scale = torch.randn(N, 1, D), torch.rand(N, 1, D) + 0.1
    qz, normal = MixtureOfNormals(loc, scale), Normal(loc[:, 0], scale[:, 0])
    z = torch.randn(N, D)
    torch.testing.assert_close(qz.log_prob(z).sum(-1), normal.log_prob(z).sum(-1))
    torch.testing.assert_close(qz.loc, normal.loc)
    torch.testing.assert_close(qz.scale, normal.scale)


def test_draws_have_the_mixtures_moments(qz):
    draws = qz.sample((40000,))
    error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - qz.loc).abs() < 4 * error).all()
    torch.testing.assert_close(draws.var(0), qz.variance, rtol=0.05, atol=0)
    assert qz.sample().shape == (N, D)
    assert qz.sample((2, 3)).shape == (2, 3, N, D)


def test_every_draw_by_itself_is_exact():
    """The k-th draw of three, over many calls: component frequencies follow the weights."""
    weights = torch.tensor([0.1, 0.2, 0.7])
    loc = torch.tensor([-100.0, 0.0, 100.0]).reshape(1, 3, 1).expand(4000, -1, -1)
    qz = MixtureOfNormals(loc, torch.ones(4000, 3, 1), weights.log().expand(4000, -1))
    component = (qz.sample((3,))[..., 0] / 100).round() + 1
    for k in range(3):
        share = torch.stack([(component[k] == s).float().mean() for s in range(3)])
        error = (weights * (1 - weights) / 4000).sqrt()
        assert ((share - weights).abs() < 4 * error).all()


def test_draws_are_spread_evenly():
    """With uniform weights and k = 2S draws, every cell gets each component exactly twice."""
    loc = torch.tensor([-100.0, 0.0, 100.0]).reshape(1, 3, 1).expand(50, -1, -1)
    component = (MixtureOfNormals(loc, torch.ones(50, 3, 1)).sample((6,)) / 100).round()
    for s in (-1, 0, 1):
        assert ((component == s).sum(0) == 2).all()


def test_core_view_scores_the_same(qz):
    (z,), log_q_all = qz.posterior.sample_stratified(2)
    assert log_q_all.shape == (2, S, S, N)
    torch.testing.assert_close(qz.posterior.log_prob([z[:, 1]]), qz.log_prob(z[:, 1]).squeeze(-1))
    torch.testing.assert_close(qz.posterior.mean, qz.loc)


def test_scvi_selects_and_concatenates_cells(qz):
    index = torch.tensor([3, 0])
    part = subset_distribution(qz, index, 0)
    torch.testing.assert_close(part.c_log_weights, qz.c_log_weights[index])
    store = DistributionConcatenator()
    for rows in (torch.arange(3), torch.arange(3, N)):
        store.store_distribution(subset_distribution(qz, rows, 0))
    whole = store.get_concatenated_distributions(axis=0)
    z = torch.randn(N, D)
    torch.testing.assert_close(whole.log_prob(z), qz.log_prob(z))


def test_arguments_are_checked(qz):
    with pytest.raises(ValueError, match="c_scale"):
        MixtureOfNormals(qz.c_loc, -qz.c_scale, validate_args=True)
