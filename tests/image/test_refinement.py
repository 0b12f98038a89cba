"""Posteriors of each image's own: closer to log p(x) for every recipe, and never above."""

import itertools

import pytest
import tiny_images
import torch
from tiny_images import Weighted, amortised, images_for
from torch import nn
from torch.distributions import Independent, Laplace

import laws
from scmixvi.core import MixturePosterior, Stage, miselbo
from scmixvi.image import ImageVAE, _evaluation, recipes


def bound_of(model, posterior, x, n_draws=1000):
    """Draws `[N, B]` of MISELBO at L = 1."""
    with torch.no_grad():
        zs, log_q_all = posterior.sample_stratified(n_draws)
        log_lik, log_prior = model.decoder(*zs).log_prob(x), model.prior().log_prob(zs)
    terms = (t.split(1) for t in (log_lik, log_prior, log_q_all))
    return torch.stack([miselbo(*t, posterior.log_weights) for t in zip(*terms, strict=True)])


@pytest.mark.parametrize("name", recipes.RECIPES)
@pytest.mark.parametrize("n_components", [1, 3])
def test_every_recipe_climbs_and_stays_below_the_evidence(name, n_components):
    model, x = tiny_images.recipe(name, n_components), images_for(name)
    evidence = tiny_images.integrate(model, x).log_evidence
    draws = [bound_of(model, model.refined_posterior(x, n), x) for n in (0, 50)]
    for each in draws:
        laws.assert_bound(each, evidence)
    gaps = [(evidence - each.mean(0)).mean() for each in draws]
    if name == "vamp":  # its encoders have nothing to win here
        assert gaps[1] < gaps[0] + 0.01 < 0.05
    else:
        assert gaps[1] < 0.8 * gaps[0]
    laws.assert_draw_law(model.refined_posterior(x, 2), 2)


@pytest.mark.parametrize(("n_levels", "prior"), itertools.product((1, 2), ("normal", "vamp")))
def test_a_flow_of_each_components_own_climbs(n_levels, prior):
    torch.manual_seed(0)
    model = tiny_images.combination(n_levels, "coupling", prior, "mlp", 2).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    x = torch.rand(4, 1, 3, 2).round().double()
    before, after = (bound_of(model, model.refined_posterior(x, n), x) for n in (0, 60))
    assert (after.mean(0) - before.mean(0)).mean() > 0.3


def test_the_likelihood_is_the_same_one_and_closer_from_fewer_draws():
    """Unbiased weights; and ten draws of refined posteriors say more than ten of the encoders'."""
    torch.manual_seed(0)
    model, x = tiny_images.recipe("hierarchical", 2), images_for("hierarchical")
    evidence = tiny_images.integrate(model, x).log_evidence
    assert (-model.nll(x, 6000, pooled=True, n_refinement_steps=50) - evidence).abs().max() < 0.05
    short = torch.stack([
        torch.stack([-model.nll(x, 10, True, n_refinement_steps=n) for _ in range(10)])
        for n in (0, 50)
    ])  # fmt: skip
    laws.assert_bound(short[1], evidence)
    off = (short - evidence).square().mean((1, 2)).sqrt()
    assert off[1] < 0.7 * off[0]


def test_weights_of_each_images_own_are_kept():
    model = tiny_images.recipe("mlp", 3)
    model = ImageVAE(Weighted(model.posterior, amortised), model.prior, model.decoder).eval()
    x = images_for("mlp")
    evidence = tiny_images.integrate(model, x).log_evidence
    found = model.refined_posterior(x, 50)
    torch.testing.assert_close(found.log_weights, amortised(x))
    draws = bound_of(model, found, x)
    laws.assert_bound(draws, evidence)
    start = bound_of(model, model.refined_posterior(x, 0), x)
    assert (draws.mean(0) - start.mean(0)).mean() > 0.5


def test_no_steps_are_the_encoders_draw_for_draw():
    model, x = tiny_images.recipe("composite", 2), images_for("composite")

    def drawn(**steps):
        torch.manual_seed(0)
        return model.nll(x, 5, **steps)

    assert torch.equal(drawn(), drawn(n_refinement_steps=0))
    assert (drawn() - drawn(n_refinement_steps=1)).abs().max() > 1e-4


def test_both_estimates_and_every_component_are_of_the_refined_posterior():
    model, x = tiny_images.recipe("vanilla", 2), images_for("vanilla")

    def drawn(method, **arguments):
        torch.manual_seed(0)
        return method(x, n_importance_samples=5, n_refinement_steps=10, **arguments)

    expected = drawn(model.nll), drawn(model.nll, pooled=True)
    torch.testing.assert_close(drawn(model.nll_estimates), expected)
    torch.testing.assert_close(drawn(model.nll_by_component).mean(0), expected[0])


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_nothing_of_the_model_is_touched_in_any_context(context):
    model, x = tiny_images.recipe("hierarchical_vamp", 2), images_for("hierarchical_vamp")
    model.train()
    model.prior.requires_grad_(False)
    kept = {name: weight.clone() for name, weight in model.state_dict().items()}
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    with context():
        seen = x.clone()
        found = model.nll(seen, 5, n_refinement_steps=3)
        assert not found.requires_grad
        model.refined_posterior(seen, 3).sample(2)
    assert torch.equal(seen, x)
    torch.testing.assert_close(dict(model.state_dict()), kept, rtol=0, atol=0)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == wanted
    assert all(p.grad is None for p in model.parameters())
    assert all(part.training for part in model.modules())


def test_images_are_refined_in_chunks_that_fit_the_budget(monkeypatch):
    """Nothing mixes the images of a chunk, so one by one they end where they do together."""
    model, x = tiny_images.recipe("vanilla", 2), images_for("vanilla")
    sizes, whole = [], _evaluation.own_posterior

    def counted(vae, images, *rest):
        sizes.append(len(images))
        return whole(vae, images, *rest)

    monkeypatch.setattr(_evaluation, "own_posterior", counted)
    found = [
        model.nll(x, 400, pooled=True, n_refinement_steps=40, memory_budget=4 * rows)
        for rows in (n * _evaluation.floats_per_row(model, model.prior()) for n in (1, 12, 10**6))
    ]
    assert sizes == [1, 1, 1, 1] + [2, 2] + [4], "what a backward pass needs is counted"
    for one, other in itertools.pairwise(found):
        torch.testing.assert_close(one, other, rtol=0, atol=0.15)


def test_no_images_are_no_images():
    model, x = tiny_images.recipe("mlp", 2), images_for("mlp")
    assert model.nll(x[:0], 5, n_refinement_steps=3).shape == (0,)


class Heavy(nn.Module):
    """A posterior whose level is not Gaussian."""

    n_components, latent_sizes, image_size = 2, (2,), (1, 2, 2)

    def forward(self, x):
        loc = torch.zeros(2, len(x), 2).to(x)
        return MixturePosterior([Stage(lambda: Independent(Laplace(loc, loc + 1), 1))])


def test_what_cannot_be_refined_is_refused():
    model, x = tiny_images.recipe("mlp", 2), images_for("mlp")
    for n_steps in (-1, 2.5, None):
        sentence = f"_steps must be a whole number of at least 0, but it is {n_steps}"
        with pytest.raises(ValueError, match=sentence):
            model.nll(x, 5, n_refinement_steps=n_steps)
        with pytest.raises(ValueError, match=sentence):
            model.refined_posterior(x, n_steps)
    heavy = ImageVAE(Heavy(), model.prior, model.decoder)
    assert heavy.nll(x, 5).isfinite().all()
    with pytest.raises(ValueError, match=r"Gaussians with diagonal covariance.*Laplace"):
        heavy.nll(x, 5, n_refinement_steps=1)
    with pytest.raises(ValueError, match="images must lie in"):
        model.refined_posterior(x + 2, 1)
