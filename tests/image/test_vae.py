"""The VAE itself: its terms, likelihood in chunks, representations, and its doors."""

import inspect
import math
from contextlib import contextmanager

import pytest
import tiny_images
import torch
from torch import nn
from torch.distributions import Beta, Binomial, ContinuousBernoulli, Independent, Normal

from scmixvi.core import MixturePosterior, Prior, Stage, StandardNormal, miselbo, siwelbo
from scmixvi.image import BoundTerms, ImageVAE, _evaluation, bits_per_dim, evaluating, recipes
from scmixvi.image._evaluation import eq_17_and_pooled, floats_per_row
from scmixvi.image.decoders import Decoder, bernoulli, mlp_net
from scmixvi.image.flows import AffineCoupling, InverseAutoregressiveFlow
from scmixvi.image.nets import mlp
from scmixvi.image.posteriors import AmortizedPosterior, LowerEncoder, TopEncoder

S, B = 3, 4


@pytest.fixture
def x():
    return tiny_images.all_images((1, 2, 2))[[1, 5, 6, 14]]


@pytest.fixture
def model():
    return tiny_images.recipe("hierarchical", S)


def test_terms_are_those_of_the_parts(model, x):
    torch.manual_seed(3)
    terms = model(x, 2)
    torch.manual_seed(3)
    zs, log_q_all = model.posterior(x).sample_stratified(2)
    torch.testing.assert_close(terms.log_q_all, log_q_all)
    torch.testing.assert_close(terms.log_prior, model.prior().log_prob(zs))
    torch.testing.assert_close(terms.log_lik, model.decoder(*zs).log_prob(x))
    assert terms.log_weights is None
    assert miselbo(*terms).shape == (B,)


def test_weights_travel_with_the_terms(x):
    model = tiny_images.recipe("mlp", S, weights=[0.5, 0.25, 0.25])
    weights = model(x).log_weights
    torch.testing.assert_close(weights.exp(), torch.tensor([0.5, 0.25, 0.25]).double())


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("n_samples", [1, 7])
def test_nll_in_one_chunk_is_minus_the_bound(model, x, n_samples, pooled):
    torch.manual_seed(4)
    found = model.nll(x, n_samples, pooled)
    torch.manual_seed(4)
    bound = (siwelbo if pooled else miselbo)(*model(x, n_samples))
    torch.testing.assert_close(found, -bound)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("weights", [None, [0.6, 0.0, 0.4]])
@pytest.mark.parametrize("budget_rows", [0.1, 3, 8, 1000])
def test_chunks_add_up_to_the_whole(x, budget_rows, weights, pooled, monkeypatch):
    """With the samples given beforehand, any chunking gives the bound of all of them."""
    model = tiny_images.recipe("mlp", S, weights=weights)
    n_samples, sizes = 7, []
    with torch.no_grad():
        whole = model(x, n_samples)
    taken = dict.fromkeys(range(B), 0)

    def given(decoder, posterior, prior, images, n):
        chosen = [int((x == image).flatten(1).all(1).nonzero()) for image in images]
        start = taken[chosen[0]]
        for b in chosen:
            taken[b] = start + n
        sizes.append(n * len(chosen))
        parts = [term[start : start + n][..., chosen] for term in whole[:3]]
        return BoundTerms(*parts, whole.log_weights)

    monkeypatch.setattr(_evaluation, "scored_draws", given)
    bytes_a_row = 4 * floats_per_row(model, model.prior())
    found = model.nll(x, n_samples, pooled, memory_budget=budget_rows * bytes_a_row)
    bound = (siwelbo if pooled else miselbo)(*whole)
    torch.testing.assert_close(found, -bound)
    assert set(taken.values()) == {n_samples}
    assert max(sizes) <= max(1, budget_rows)


def test_likelihood_stays_exact_in_float32_over_many_samples():
    strata = torch.tensor([[700.0, 800.0], [701.0, 790.0]])
    nll, pooled = eq_17_and_pooled(strata)
    torch.testing.assert_close(pooled, math.log(2) - (-strata).logsumexp(0))
    torch.testing.assert_close(nll, strata.mean(0))


@pytest.mark.parametrize("weights", [None, torch.tensor([0.2, 0.8]), torch.rand(2, 5)])
def test_eq_17_and_the_pooled_estimate_of_the_same_draws(weights):
    strata = torch.randn(2, 5)
    share = torch.full((2,), 0.5) if weights is None else weights / weights.sum(0)
    log_weights = None if weights is None else share.log()
    nll, pooled = eq_17_and_pooled(strata, log_weights)
    share = share.reshape(2, -1)
    torch.testing.assert_close(nll, (share * strata).sum(0))
    torch.testing.assert_close(pooled, -(share * (-strata).exp()).sum(0).log())


def test_a_component_without_weight_may_say_anything():
    strata = torch.tensor([[5.0], [math.inf]])
    for found in eq_17_and_pooled(strata, torch.tensor([0.0, -math.inf])):
        torch.testing.assert_close(found, torch.tensor([5.0]))


def test_both_estimates_are_those_of_the_model():
    vae = recipes.mlp(2, n_latent=3, encoder_hidden=(8,), decoder_hidden=(8,), weights=(0.2, 0.8))
    x = torch.rand(5, 1, 28, 28).round()

    def from_one_seed(estimate):
        torch.manual_seed(1)
        return estimate()

    expected = tuple(from_one_seed(lambda p=p: vae.nll(x, 7, pooled=p)) for p in (False, True))
    found = from_one_seed(lambda: vae.nll_estimates(x, 7))
    torch.testing.assert_close(found, expected)
    strata = from_one_seed(lambda: vae.nll_by_component(x, 7))
    torch.testing.assert_close(eq_17_and_pooled(strata, vae.posterior.log_weights), expected)


def test_likelihoods_take_5000_draws_by_default():
    for method in (ImageVAE.nll, ImageVAE.nll_by_component):
        assert inspect.signature(method).parameters["n_importance_samples"].default == 5000


@pytest.mark.parametrize("part", ["posterior", "decoder"])
def test_a_model_in_training_answers_as_in_evaluation_mode(x, part):
    model = tiny_images.recipe("mlp", 2)
    layers = model.decoder.net if part == "decoder" else model.posterior.levels[0].features
    layers.insert(1, nn.Dropout(0.9))
    for ask in (
        lambda: model.sample(50),
        lambda: model.reconstruct(x),
        lambda: model.jsd(x, 20),
        lambda: model.encode(x, "params"),
        lambda: model.nll(x, 20),
    ):
        found = []
        for training in (False, True):
            torch.manual_seed(3)
            model.train(training)
            found.append(ask())
        torch.testing.assert_close(*found)


def test_evaluation_mode_is_put_back_part_by_part(model, x):
    """The encoder averages over the batch, so that its buffers show the mode."""
    model.posterior.levels[0].features.layers.insert(0, nn.BatchNorm2d(1).double())
    model.train()
    model.decoder.eval()
    before = [buffer.clone() for buffer in model.buffers()]
    model.nll(x, 3)
    model.sample(2)
    model.reconstruct(x)
    model.jsd(x)
    assert model.training
    assert model.posterior.training
    assert not any(part.training for part in model.decoder.modules())
    for old, new in zip(before, model.buffers(), strict=True):
        torch.testing.assert_close(old, new)
    with pytest.raises(RuntimeError, match="inside"), evaluating(model):
        raise RuntimeError("inside")
    assert model.training


def test_exact_posterior_gives_the_exact_likelihood():
    """p(x|z) constant in z and q = p(z): every weight is p(x)."""

    class Posterior(nn.Module):
        n_components, latent_sizes, image_size = 2, (3,), (1, 2, 2)

        def forward(self, x):
            base = Independent(Normal(x.new_zeros(2, len(x), 3), 1.0), 1)
            return MixturePosterior([Stage(lambda: base)])

    class Decoder(nn.Module):
        latent_sizes, image_size = (3,), (1, 2, 2)

        def __init__(self):
            super().__init__()
            self.logits = nn.Parameter(torch.randn(1, 2, 2))

        def forward(self, z):
            return bernoulli(self.logits.expand(*z.shape[:-1], 1, 2, 2))

    model = ImageVAE(Posterior(), Prior(StandardNormal(3)), Decoder())
    images = tiny_images.all_images((1, 2, 2)).float()
    probability = (-model.nll(images, 5)).exp()
    assert probability.sum().item() == pytest.approx(1, abs=1e-5)


def test_samples_and_reconstructions(x):
    torch.manual_seed(0)
    model = tiny_images.recipe("mlp", S)
    assert model.sample(5).shape == (5, 1, 2, 2)
    probabilities = model.reconstruct(x)
    assert probabilities.shape == x.shape
    assert ((probabilities > 0) & (probabilities < 1)).all()
    drawn = tiny_images.recipe("vanilla", S).reconstruct(x)
    assert set(drawn.flatten().tolist()) <= {0.0, 1.0}
    colour = tiny_images.recipe("cifar_vanilla", S).sample(3)
    torch.testing.assert_close(colour * 255, (colour * 255).round())


def test_samples_follow_the_model():
    model = tiny_images.recipe("composite", 2)
    images = tiny_images.all_images((1, 2, 2))
    log_prob = tiny_images.integrate(model, images).log_evidence
    draws = model.sample(20000)
    frequency = (draws.unsqueeze(1) == images).flatten(2).all(-1).double().mean(0)
    probability = log_prob.exp()
    error = (probability * (1 - probability) / 20000).sqrt()
    assert ((frequency - probability).abs() <= 4 * error).all()


@pytest.mark.parametrize("weights", [None, [0.5, 0.25, 0.25]])
def test_representations(x, weights):
    model = tiny_images.recipe("mlp", S, weights=weights)
    base = model.posterior(x).stages[0].conditional()
    mean, components, params = (model.encode(x, r) for r in ("mean", "components", "params"))
    torch.testing.assert_close(mean, model.posterior(x).mean)
    assert components.shape == (B, S * 2)
    for s in range(S):
        torch.testing.assert_close(components[:, 2 * s : 2 * s + 2], base.mean[s])
        variances = params[:, 2 * S + 2 * s : 2 * S + 2 * s + 2]
        torch.testing.assert_close(variances, base.variance[s])
    torch.testing.assert_close(params[:, : 2 * S], components)


def test_representation_behind_a_flow(x):
    model = tiny_images.recipe("iaf", S)
    base = model.posterior(x).stages[0].conditional()
    moved = model.posterior.flows[0](base.mean)[0]
    torch.testing.assert_close(model.encode(x, "mean"), moved.mean(0))
    assert (moved - base.mean).abs().max() > 0.01


def test_jsd_is_between_0_and_log_s(model, x):
    divergence = model.jsd(x, 500)
    assert divergence.shape == (B,)
    assert (divergence > 0).all()
    assert (divergence < math.log(S) + 0.05).all()
    one = tiny_images.recipe("hierarchical", 1)
    assert one.jsd(x).abs().max() < 1e-9


def test_bits_per_dim():
    nll = torch.tensor([3072 * math.log(2), 4.5 * 3072 * math.log(2)])
    torch.testing.assert_close(bits_per_dim(nll, 3072), torch.tensor([1.0, 4.5]))


@pytest.mark.parametrize("flow", ["iaf", "coupling"])
@pytest.mark.parametrize("decoder", ["mlp", "pixelcnn", "logistic"])
def test_mixed_precision_keeps_the_sums_in_float32(flow, decoder):
    model = tiny_images.combination(2, flow, "vamp", decoder, S).float()
    with torch.autocast("cpu", torch.bfloat16):
        terms = model(torch.rand(B, 1, 3, 2).round(), 2)
    assert all(term.dtype == torch.float32 for term in terms[:3])
    assert torch.isfinite(siwelbo(*terms)).all()


def test_state_survives_a_round_trip(model, x, tmp_path):
    torch.save(model.state_dict(), tmp_path / "state.pt")
    other = tiny_images.recipe("hierarchical", S)
    with torch.no_grad():
        next(other.parameters()).zero_()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    torch.manual_seed(5)
    expected = model.nll(x, 3)
    torch.manual_seed(5)
    torch.testing.assert_close(other.nll(x, 3), expected)


NAN = float("nan")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 2), r"images must have shape \[B, C, H, W\]"),
        (torch.zeros(3, 1, 2, 3), r"\(C, H, W\) = \(1, 2, 2\)"),
        (torch.zeros(3, 3, 2, 2), r"\(C, H, W\) = \(1, 2, 2\)"),
        (torch.zeros(3, 1, 2, 2, dtype=torch.uint8), "divide 8-bit pixels by 255"),
        (torch.full((3, 1, 2, 2), 1.5), r"must lie in \[0, 1\].*largest 1.5"),
        (torch.full((3, 1, 2, 2), -0.5), r"must lie in \[0, 1\]"),
        (torch.full((3, 1, 2, 2), NAN), "NaN"),
    ],
)
@pytest.mark.parametrize("method", ["__call__", "nll", "reconstruct", "encode", "jsd"])
def test_bad_images(images, message, method):
    model = tiny_images.recipe("mlp", 2)
    with pytest.raises(ValueError, match=message):
        getattr(model, method)(images)


@pytest.mark.parametrize("decoder", ["mlp", "pixelcnn"])
@pytest.mark.parametrize("training", [False, True])
def test_grey_images_have_no_likelihood_under_a_decoder_of_binary_pixels(decoder, training):
    model = tiny_images.combination(1, "none", "normal", decoder, 2).train(training)
    grey = torch.full((B, 1, 3, 2), 0.5).double()
    for asked in (model, model.nll, model.nll_by_component):
        with pytest.raises(ValueError, match=r"outside the support .*torch\.bernoulli"):
            asked(grey)
    assert model.encode(grey).shape == (B, 2), "grey images are images all the same"
    assert model.nll(grey.round(), 2).isfinite().all()
    assert not model.support.check(grey).any()
    assert model.training == training


def test_grey_images_have_one_under_other_decoders():
    model = tiny_images.combination(1, "none", "normal", "logistic", 2)
    assert model.nll(torch.full((B, 1, 3, 2), 2 / 3).double(), 2).isfinite().all()


def test_a_training_step_off_the_cpu_does_not_read_the_pixels():
    """On the meta device nothing can be read."""
    model = tiny_images.recipe("mlp", 2).to("meta").train()
    x = torch.zeros(B, 1, 2, 2, dtype=torch.float64, device="meta")
    assert model(x).log_q_all.shape == (1, 2, 2, B)
    for asked, training in ((model, False), (model.nll, True), (model.encode, True)):
        model.train(training)
        with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
            asked(x)


def test_more_doors(model, x):
    with pytest.raises(ValueError, match="at least 1"):
        model(x, 0)
    with pytest.raises(ValueError, match="at least 1"):
        model.nll(x, 0)
    with pytest.raises(ValueError, match="at least 1"):
        model.sample(0)
    with pytest.raises(ValueError, match="representation must be one of .*'mean'"):
        model.encode(x, "samples")


def test_parts_must_fit():
    model, other = tiny_images.recipe("mlp", 2), tiny_images.recipe("hierarchical", 2)
    with pytest.raises(ValueError, match=r"prior is made for latents of sizes \(1, 2\)"):
        ImageVAE(model.posterior, other.prior, model.decoder)
    with pytest.raises(ValueError, match="decoder is made for latents"):
        ImageVAE(model.posterior, model.prior, other.decoder)
    larger = recipes.mlp(2, image_size=(1, 3, 2), n_latent=2)
    with pytest.raises(ValueError, match=r"decoder makes images of size \(1, 3, 2\)"):
        ImageVAE(model.posterior, model.prior, larger.decoder)


def test_a_decoder_whose_network_takes_other_latents_is_named(x):
    model = tiny_images.recipe("mlp", 2)
    net = mlp_net(3, [4], (1, 2, 2))
    decoder = Decoder(net, bernoulli, latent_sizes=[2], image_size=(1, 2, 2)).double()
    other = ImageVAE(model.posterior, model.prior, decoder)
    for asked in (other, other.nll):
        with pytest.raises(
            ValueError, match=r"decoder failed on latents of sizes \(2,\), top first"
        ):
            asked(x)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, NotImplementedError, KeyError])
def test_a_decoder_that_fails_for_another_reason_says_so_itself(x, error):
    def failing(*_):
        raise error("of its own")

    model = tiny_images.recipe("mlp", 2)
    model.decoder.likelihood = failing
    with pytest.raises(error, match="of its own"):
        model(x)


def test_a_decoder_that_gives_no_maps_is_named(x):
    model = tiny_images.recipe("mlp", 2)
    model.decoder.net = model.decoder.net[:-1]
    with pytest.raises(ValueError, match="decoder failed on latents .* look at its network"):
        model(x)


@pytest.mark.parametrize("asked", ["forward", "nll", "encode", "reconstruct", "jsd"])
@pytest.mark.parametrize("kind", ["numpy", "tolist", "split"])
def test_images_that_are_no_tensor_are_named(model, x, asked, kind):
    with pytest.raises(
        ValueError, match=r"one tensor \[B, C, H, W\], but they are of type (nd|l|t)"
    ):
        getattr(model, asked)(getattr(x, kind)(*[1] * (kind == "split")))


def test_a_memory_budget_may_be_written_as_a_float(model, x):
    figures = []
    for budget in (10**5, 1e5):
        torch.manual_seed(0)
        figures.append(model.nll(x, 600, memory_budget=budget))
    assert torch.equal(*figures)


def test_an_infinite_memory_budget_is_no_limit(model, x):
    figures = []
    for budget in (10**12, float("inf")):
        torch.manual_seed(0)
        figures.append(model.nll(x, 600, memory_budget=budget))
    assert torch.equal(*figures)


@pytest.mark.parametrize("budget", [float("nan"), 0, -1e9, "1e9", True, -float("inf")])
def test_a_memory_budget_is_a_positive_number(model, x, budget):
    for images in (x, x[:0]):
        with pytest.raises(ValueError, match=f"must be a positive number .* is {budget!r}"):
            model.nll(images, 3, memory_budget=budget)


@pytest.mark.parametrize("pooled", [False, True])
def test_no_images_have_no_likelihood(model, x, pooled):
    assert model.nll(x[:0], 3, pooled).shape == (0,)
    assert model.nll_by_component(x[:0], 3).shape == (model.n_components, 0)
    assert model.encode(x[:0]).shape[0] == 0
    parts = tiny_images.recipe("mlp", 3)
    weighted = tiny_images.Weighted(parts.posterior, tiny_images.amortised)
    assert ImageVAE(weighted, parts.prior, parts.decoder).encode(x[:0]).shape == (0, 2)


def test_what_eq_17_averages_is_there_by_component(x):
    model = tiny_images.recipe("mlp", S, weights=[0.5, 0.25, 0.25])
    torch.manual_seed(4)
    by_component = model.nll_by_component(x, 7)
    torch.manual_seed(4)
    whole = model.nll(x, 7)
    assert by_component.shape == (S, B)
    weights = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    torch.testing.assert_close(weights @ by_component, whole)


@pytest.mark.parametrize("method", ["reconstruct", "jsd", "__call__"])
def test_no_images_are_refused_where_nothing_can_come_of_them(model, x, method):
    with pytest.raises(ValueError, match=r"at least one image, but x has shape \(0, 1, 2, 2\)"):
        getattr(model, method)(x[:0])


@pytest.mark.parametrize("method", ["encode", "nll", "jsd", "__call__"])
def test_images_of_another_precision_than_the_weights_are_refused(model, x, method):
    with pytest.raises(
        ValueError, match=r"images are torch.float32 and the model's weights torch.f"
    ):
        getattr(model, method)(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert model.float().encode(x.float()).isfinite().all()


def test_the_number_of_samples_is_a_whole_number(model, x):
    for n_samples in (0, 2.0, None):
        with pytest.raises(ValueError, match=r"samples \(L\) must be a whole number of at least 1"):
            model.nll(x, n_samples)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("recipe", ["mlp", "hierarchical"])
def test_weights_of_16_bits_are_refused(x, dtype, recipe):
    model = tiny_images.recipe(recipe, 2).to(dtype)
    for ask in (model, lambda images: model.nll(images, 2), model.encode):
        for images in (x.to(dtype), x.float()):
            with pytest.raises(ValueError, match=rf"weights are {dtype}, .*autocast.*bf16-mixed"):
                ask(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.float()(x.float())[0].isfinite().all()


def table_of_counts(logits):
    """Whose support says what the largest number of every pixel is: a tensor."""
    counts = torch.full(logits.shape[-3:], 5.0, dtype=logits.dtype)
    return Independent(Binomial(counts, logits=logits, validate_args=False), 3)


def test_a_support_is_named_in_a_few_words(x):
    model = tiny_images.recipe("mlp", 2)
    sizes = model.latent_sizes, model.image_size
    model.decoder = Decoder(mlp_net(2, [4], (1, 2, 2)), table_of_counts, *sizes).double()
    with pytest.raises(ValueError, match="distribution, IntegerInterval: draw"):
        model(x / 2)
    with pytest.raises(
        ValueError, match=r"distribution, IndependentConstraint\(Boolean\(\), 3\): "
    ):
        tiny_images.recipe("mlp", 2)(x / 2)


def test_the_support_is_that_of_the_decoder_of_now():
    grey = torch.full((2, 3, 2, 2), 0.25).double()
    model, binary = tiny_images.recipe("cifar_vanilla", 2), tiny_images.recipe("mlp", 2)
    sizes = model.latent_sizes, model.image_size
    assert model.nll(grey, 2).isfinite().all()
    model.decoder = Decoder(mlp_net(2, [4], (3, 2, 2)), bernoulli, *sizes).double()
    with pytest.raises(ValueError, match="outside the support"):
        model.nll(grey, 2)
    assert binary.support is binary.support


def beta_images(parameters):
    concentrations = parameters.unflatten(-3, (2, -1)).exp() + 1
    return Independent(Beta(*concentrations.unbind(-4), validate_args=False), 3)


def continuous_bernoulli(logits):
    return Independent(ContinuousBernoulli(logits=logits, validate_args=False), 3)


def test_pixels_at_which_a_density_is_not_finite_are_refused(x):
    model = tiny_images.recipe("mlp", 2)
    sizes = model.latent_sizes, model.image_size
    model.decoder = Decoder(mlp_net(2, [4], (2, 2, 2)), beta_images, *sizes).double()
    inside = (255 * x + 0.5) / 256
    assert model.nll(inside, 2).isfinite().all()
    assert miselbo(*model(inside)).isfinite().all()
    for ask in (model, lambda images: model.nll(images, 2)):
        with pytest.raises(ValueError, match=r"not finite at pixels of exactly 0 or 1, .* inside"):
            ask(x)
    with pytest.raises(ValueError, match="must lie in"):
        model.nll(inside + 1, 2)
    assert str(model.support).endswith("without 0 and 1")


def test_a_model_that_diverged_says_nothing_of_pixels():
    model = tiny_images.recipe("mlp", 2)
    sizes = model.latent_sizes, model.image_size
    model.decoder = Decoder(mlp_net(2, [4], (1, 2, 2)), continuous_bernoulli, *sizes).double()
    for weight in model.decoder.parameters():
        torch.nn.init.constant_(weight, math.nan)
    assert model.nll(torch.zeros(1, 1, 2, 2).double(), 2).isnan().all()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_density_that_is_finite_at_both_ends_takes_them(value):
    model = tiny_images.recipe("mlp", 2)
    sizes = model.latent_sizes, model.image_size
    model.decoder = Decoder(mlp_net(2, [4], (1, 2, 2)), continuous_bernoulli, *sizes).double()
    assert model.nll(torch.full((1, 1, 2, 2), value).double(), 2).isfinite().all()


def test_a_decoder_of_other_images_is_refused(x):
    model = tiny_images.recipe("mlp", 2)
    sizes = model.latent_sizes, model.image_size
    decoder = Decoder(mlp_net(2, [4], (1, 1, 1)), bernoulli, *sizes).double()
    with pytest.raises(
        ValueError, match=r"over images \(C, H, W\) = \(1, 1, 1\), but the model is"
    ):
        ImageVAE(model.posterior, model.prior, decoder)(x)


def test_parts_of_other_sizes_are_named():
    features = nn.Sequential(nn.Flatten(), mlp([4, 8], n_components=2))
    top = TopEncoder(features, 8, 2, 2)
    for flow, sentence in (
        (
            InverseAutoregressiveFlow(4),
            r"n_latent \(D\) of a level is 2, but its flow, Inverse.* 4",
        ),
        (AffineCoupling(4, 2), r"n_latent \(D\) of a level is 2, but its flow, AffineC.* for 4"),
        (AffineCoupling(2, 3), r"n_components \(S\) of a level is 2, but its flow, .* for 3"),
    ):
        with pytest.raises(ValueError, match=sentence):
            AmortizedPosterior([top], 2, (1, 2, 2), [flow])
    lower = LowerEncoder(features, 8, 3, 2, 5, 2)
    with pytest.raises(ValueError, match="n_above of a LowerEncoder is 3, but the level .* D = 2"):
        AmortizedPosterior([top, lower], 2, (1, 2, 2))
    with pytest.raises(ValueError, match="it is the top one: begin with a TopEncoder"):
        AmortizedPosterior([lower], 2, (1, 2, 2))
    wrong = AmortizedPosterior([TopEncoder(features, 9, 2, 2)], 2, (1, 2, 2))
    with pytest.raises(
        ValueError, match="n_features of a TopEncoder is 9, but its features give 8"
    ):
        wrong(torch.zeros(3, 1, 2, 2))


def test_freed_memory_is_kept_between_the_chunks_of_nll(model, x, monkeypatch):
    happened, scored = [], _evaluation._of_images

    @contextmanager
    def kept():
        happened.append("kept")
        yield
        happened.append("given back")

    def score(*arguments):
        happened.append("scored")
        return scored(*arguments)

    monkeypatch.setattr(_evaluation, "freed_memory_kept", kept)
    monkeypatch.setattr(_evaluation, "_of_images", score)
    model.nll(x, 2)
    assert happened == ["kept", "scored", "given back"]
