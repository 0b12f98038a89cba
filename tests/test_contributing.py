"""The examples of "Add a flow", "Add a prior" and "Add a likelihood" run and keep the laws."""

import re
from pathlib import Path

import pytest
import tiny_images
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

import laws
from scmixvi.core import MixturePosterior, Prior, Stage, StandardNormal, miselbo, siwelbo
from scmixvi.image import ImageVAE
from scmixvi.image.recipes import mlp

PAGES = Path(__file__).parents[1] / "docs" / "contributing"
L, S, B = 2, 3, 5


def blocks(page):
    """The page's blocks of Python, in order."""
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def run(page):
    """What the page's code defines, from top to bottom."""
    names = {}
    for block in blocks(page):
        exec(compile(block, f"{page}.md", "exec"), names)
    return names


def spread(module):
    """The module in float64, its parameters away from where training starts."""
    module = module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
        for level in getattr(getattr(module, "posterior", None), "levels", []):
            level.head.bias[..., level.n_latent :] += 1.0
    return module


def assert_bounds_below_the_evidence(model, x):
    """MISELBO and the pooled bound, averaged over draws, against log p(x) from a grid."""
    evidence, _, prior_mass = tiny_images.integrate(model, x, half_width=12.0, step=0.2)
    assert prior_mass.item() == pytest.approx(1, abs=1e-4)
    with torch.no_grad():
        terms = model(x, 2000)
    for objective in (miselbo, siwelbo):
        draws = objective(*[_each_draw(term) for term in terms[:3]]).unflatten(0, (2000, -1))
        laws.assert_bound(draws, evidence)
        assert ((evidence - draws.mean(0)) > 1e-3).all(), "there is a gap to see"
        laws.assert_every_parameter_has_gradient(model, -objective(*model(x, 2)).mean())


def _each_draw(term):
    """`[L, ..., B]` to `[1, ..., L * B]`: L draws of a bound with one sample."""
    return term.movedim(0, -2).flatten(-2).unsqueeze(0)


@pytest.mark.parametrize("page", ["flow", "prior", "likelihood"])
def test_the_part_is_short(page):
    code = [line for line in blocks(page)[0].splitlines() if line.strip()]
    assert len(code) <= 25


@pytest.mark.parametrize("n_components", [None, S], ids=["shared", "one each"])
class TestFlow:
    @pytest.fixture
    def flow(self, n_components):
        return spread(run("flow")["SinhArcsinh"](2, n_components))

    @pytest.fixture
    def posterior(self, flow):
        loc = torch.linspace(-0.5, 0.5, S * B * 2).double().reshape(S, B, 2)
        return MixturePosterior([Stage(lambda: Independent(Normal(loc, 0.4), 1), flow)])

    def test_jacobian_and_inverse(self, flow, n_components):
        assert flow.shared == (n_components is None)
        laws.assert_log_determinant(flow, torch.randn(1, S, 1, 2).double())
        laws.assert_round_trip(flow, torch.randn(L, S, B, 2).double())

    def test_density(self, posterior):
        laws.assert_draw_law(posterior, L)
        laws.assert_integrates_to_1(
            lambda z: posterior.log_prob([z.unsqueeze(1).expand(-1, B, -1)])[:, -1], half_width=12
        )

    def test_bound(self, posterior):
        target = laws.LinearGaussian(n_inputs=B)
        terms = target.terms(posterior, 4000)
        draws = miselbo(*map(_each_draw, terms)).unflatten(0, (4000, -1))
        laws.assert_bound(draws, target.log_evidence)
        laws.assert_permutation_invariant(*terms)


def test_the_page_on_flows_makes_a_model():
    posterior = run("flow")["posterior"]
    plain = mlp(S, image_size=(1, 2, 2), n_latent=2, encoder_hidden=(8,), decoder_hidden=(8,))
    model = spread(ImageVAE(posterior, plain.prior, plain.decoder))
    assert_bounds_below_the_evidence(model, tiny_images.all_images((1, 2, 2))[[1, 6, 15]])


class TestPrior:
    def test_density_is_that_of_torch_and_integrates_to_1(self):
        level = spread(run("prior")["LearnedMixture"](2, 5))
        parts = Independent(Normal(level.mean, (0.5 * level.log_variance).exp()), 1)
        expected = MixtureSameFamily(Categorical(logits=level.logits), parts)
        z = 3 * torch.randn(L, S, B, 2).double()
        torch.testing.assert_close(level().log_prob(z), expected.log_prob(z))
        laws.assert_integrates_to_1(level().log_prob)

    def test_draws(self):
        level = spread(run("prior")["LearnedMixture"](2, 5))
        laws.assert_draws_follow(level().log_prob, level().sample((20000,)))

    @pytest.mark.parametrize("wrong", ["scale", "members a dimension"])
    def test_draws_of_the_right_mean_alone_are_seen(self, wrong):
        density = spread(run("prior")["LearnedMixture"](2, 5))()
        draws = density.sample((2, 20000))
        if wrong == "scale":
            draws = draws[0] + 0.5 * torch.randn(20000, 2)
        else:
            draws = torch.stack([draws[0, :, 0], draws[1, :, 1]], -1)
        with pytest.raises(AssertionError, match="off by"):
            laws.assert_draws_follow(density.log_prob, draws)

    def test_bound(self):
        x = tiny_images.all_images((1, 2, 2))[[1, 6, 15]]
        assert_bounds_below_the_evidence(spread(run("prior")["model"]), x)


@pytest.mark.parametrize("name", ["decoder", "autoregressive"])
class TestLikelihood:
    @pytest.fixture
    def decoder(self, name):
        decoder = spread(run("likelihood")[name])
        tiny_images.spread_batch_norms(decoder)
        return decoder

    def test_probabilities_sum_to_1_and_draws_have_them(self, decoder):
        images = tiny_images.all_images((1, 2, 2), levels=(0.0, 0.5, 1.0))
        with torch.no_grad():
            px = decoder(torch.randn(1, 2).double())
            probabilities = px.log_prob(images).exp()
        assert probabilities.sum().item() == pytest.approx(1, abs=1e-9)
        drawn = px.sample((4000,))[:, 0]
        counts = (drawn.unsqueeze(1) == images).all(-1).all(-1).all(-1).double().mean(0)
        error = (probabilities * (1 - probabilities) / 4000).sqrt()
        assert counts.sum().item() == pytest.approx(1)
        assert ((counts - probabilities).abs() < 4.5 * error + 1e-3).all()

    def test_bound(self, decoder):
        plain = mlp(S, image_size=(1, 2, 2), n_latent=2, encoder_hidden=(8,), decoder_hidden=(8,))
        posterior = spread(plain.posterior)
        model = ImageVAE(posterior, Prior(StandardNormal(2)).double(), decoder).eval()
        images = tiny_images.all_images((1, 2, 2), levels=(0.0, 0.5, 1.0))[[1, 40, 80]]
        assert_bounds_below_the_evidence(model, images)
