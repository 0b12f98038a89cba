"""Every combination of levels, flows, priors and decoders keeps the laws."""

import itertools

import pytest
import tiny_images
import torch

import laws
from scmixvi.core import miselbo, siwelbo

B = 5
PARTS = list(
    itertools.product(
        (1, 2, 3), (None, "iaf", "coupling"), ("normal", "vamp"), ("mlp", "pixelcnn", "logistic")
    )
)
IMAGES = tiny_images.all_images((1, 3, 2))


def build(parts, n_components):
    model = tiny_images.combination(*parts, n_components)
    return model, IMAGES[torch.arange(B) * 11]


@pytest.mark.parametrize("n_samples", [1, 2])
@pytest.mark.parametrize("n_components", [1, 3])
@pytest.mark.parametrize("parts", PARTS, ids=lambda parts: "-".join(map(str, parts)))
def test_shapes_gradients_and_invariance(parts, n_components, n_samples):
    model, x = build(parts, n_components)
    terms = model(x, n_samples)
    assert terms.log_lik.shape == terms.log_prior.shape == (n_samples, n_components, B)
    assert terms.log_q_all.shape == (n_samples, n_components, n_components, B)
    laws.assert_permutation_invariant(*terms)
    laws.assert_pooled_not_below_stratified(*terms)
    objective = miselbo if n_samples == 1 else siwelbo
    laws.assert_every_parameter_has_gradient(model, -objective(*terms).mean())


@pytest.mark.parametrize("n_components", [1, 3])
@pytest.mark.parametrize("parts", PARTS, ids=lambda parts: "-".join(map(str, parts)))
def test_draws_are_scored_as_any_point(parts, n_components):
    model, x = build(parts, n_components)
    for n_samples in (1, 2):
        laws.assert_draw_law(model.posterior(x), n_samples)


@pytest.mark.parametrize("parts", PARTS, ids=lambda parts: "-".join(map(str, parts)))
def test_renamed_components(parts):
    model, x = build(parts, 3)
    model.eval()
    posterior = model.posterior(x)
    zs, scores = posterior.sample_stratified(2)
    assert [z.shape[-1] for z in zs] == [2, 3, 4][: parts[0]]
    before = model.prior().log_prob(zs), model.decoder(*zs).log_prob(x)
    order = [2, 0, 1]
    tiny_images.permute_components(model, order)
    torch.testing.assert_close(model.posterior(x).log_prob_all(zs), scores[:, :, order])
    torch.testing.assert_close(model.prior().log_prob(zs), before[0])
    torch.testing.assert_close(model.decoder(*zs).log_prob(x), before[1])
