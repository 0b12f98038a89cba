"""Flows: log-determinants against autograd, round trips, and the trap of Eq. 7."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal

import laws
from scmixvi.core import MixturePosterior, Stage, miselbo
from scmixvi.image.flows import AffineCoupling, InverseAutoregressiveFlow

L, S, B = 2, 3, 5


def make(kind, n_latent, n_steps=2):
    if kind == "iaf":
        flow = InverseAutoregressiveFlow(n_latent, n_steps, (11, 7)).double()
    else:
        flow = AffineCoupling(n_latent, S, n_steps, (11, 7)).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(2)
    return flow


flows = pytest.mark.parametrize("kind", ["iaf", "coupling"])


@flows
@pytest.mark.parametrize("n_latent", [2, 5])
@pytest.mark.parametrize("n_steps", [1, 3])
def test_log_determinant_is_that_of_the_jacobian(kind, n_latent, n_steps):
    flow = make(kind, n_latent, n_steps)
    laws.assert_log_determinant(flow, torch.randn(1, S, 1, n_latent).double())


@flows
@pytest.mark.parametrize("n_latent", [2, 5])
def test_round_trip(kind, n_latent):
    laws.assert_round_trip(make(kind, n_latent), torch.randn(L, S, B, n_latent).double())


def test_inverse_of_a_coupling_under_another_component():
    flow = make("coupling", 4)
    z = torch.randn(L, S, B, 4).double()
    back, log_det = flow.inverse(z.unsqueeze(2))
    for s in range(S):
        for j in range(S):
            rows = torch.zeros_like(z)
            rows[:, j] = back[:, s, j]
            there, log_det_there = flow(rows)
            torch.testing.assert_close(there[:, j], z[:, s])
            torch.testing.assert_close(log_det_there[:, j], log_det[:, s, j])


def test_a_step_of_the_iaf_is_autoregressive_and_steps_turn_around():
    flow = make("iaf", 4, n_steps=2)
    z0 = torch.randn(4).double()
    for step, net in enumerate(flow.nets):
        single = make("iaf", 4, n_steps=1)
        single.nets[0] = net
        jacobian = torch.autograd.functional.jacobian(lambda p, f=single: f(p)[0], z0)
        ordered = jacobian if step == 0 else jacobian.flip(0, 1)
        assert (ordered.triu(1) == 0).all()
        assert (ordered.tril(-1) != 0).any()


def test_an_iaf_starts_near_the_identity():
    """Where its networks say nothing, a step takes z to sigmoid(2) z."""
    flow, z0 = make("iaf", 3, n_steps=2), torch.tensor([1.0, -2.0, 3.0]).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.zero_()
    z, log_det = flow(z0)
    scale = 1 / (1 + math.exp(-2))
    torch.testing.assert_close(z, scale**2 * z0)
    assert log_det.item() == pytest.approx(2 * 3 * math.log(scale))


@flows
def test_density_behind_a_flow_integrates_to_1(kind):
    flow = make(kind, 2)
    base = Independent(Normal(torch.zeros(S, 1, 2).double(), 0.5), 1)
    posterior = MixturePosterior([Stage(lambda: base, flow)])
    laws.assert_integrates_to_1(lambda z: posterior.log_prob([z.unsqueeze(1)])[:, 0])


@flows
@pytest.mark.parametrize("n_samples", [1, 2])
def test_draw_law(kind, n_samples):
    base = Independent(Normal(torch.randn(S, B, 4).double(), 1.0), 1)
    laws.assert_draw_law(MixturePosterior([Stage(lambda: base, make(kind, 4))]), n_samples)


def shifting_coupling(shift):
    """Two components whose couplings do nothing but shift every dimension by +-`shift`."""
    flow = AffineCoupling(2, 2, n_steps=2, n_hidden=(3,)).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.zero_()
        for net in flow.nets:
            net[-1].bias[:, :, 0] = torch.tensor([[shift], [-shift]])
    return flow


def test_eq_7_with_unequal_flows_would_exceed_the_evidence():
    """Both components end up as N(0, 0.1^2): the bound is log p(x) = 0; Eq. 7 adds log 2."""
    base_mean = torch.tensor([-10.0, 10.0]).double().reshape(2, 1, 1).expand(2, 1, 2)
    base = Independent(Normal(base_mean, 0.1), 1)
    flow = shifting_coupling(10.0)
    (z,), log_q_all = MixturePosterior([Stage(lambda: base, flow)]).sample_stratified(7)
    log_posterior = Normal(torch.zeros(2).double(), 0.1).log_prob(z).sum(-1)
    nothing = torch.zeros_like(log_posterior)
    exact = miselbo(nothing, log_posterior, log_q_all)
    torch.testing.assert_close(exact, torch.zeros_like(exact))
    z0 = flow.inverse(z.unsqueeze(2))[0].diagonal(dim1=1, dim2=2).movedim(-1, 1)
    as_printed = base.log_prob(z0.unsqueeze(2))  # component j's base at s's base draw; log-det 0
    too_high = miselbo(nothing, log_posterior, as_printed)
    torch.testing.assert_close(too_high, torch.full_like(too_high, math.log(2)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: InverseAutoregressiveFlow(1), "at least 2 latent dimensions"),
        (lambda: InverseAutoregressiveFlow(4, 0), "n_steps"),
        (lambda: InverseAutoregressiveFlow(4, 2, (3, 9)), "at least D = 4"),
        (lambda: InverseAutoregressiveFlow(2.5), "a whole number, but D is 2.5"),
        (lambda: InverseAutoregressiveFlow("4"), "a whole number, but D is '4'"),
        (lambda: AffineCoupling(2.5, 2), "a whole number, but D is 2.5"),
        (lambda: AffineCoupling(1, 2), "at least 2 latent dimensions"),
        (lambda: AffineCoupling(4, 2, 0), "n_steps"),
        (lambda: AffineCoupling(4, 0), r"n_components \(S\) of a flow"),
        (lambda: InverseAutoregressiveFlow(4, 2, ()), "n_hidden of a flow must be 1 or more whole"),
        (lambda: InverseAutoregressiveFlow(4, 2, (9.5,)), "n_hidden of a flow must be 1 or more"),
        (lambda: AffineCoupling(4, 2, 2, ()), "n_hidden of a flow must be 1 or more whole"),
        (lambda: AffineCoupling(4, 2, 2, 9), "each at least 1, but it is 9"),
    ],
)
def test_doors(build, message):
    with pytest.raises(ValueError, match=message):
        build()
