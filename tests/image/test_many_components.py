"""S2A, S2S and a shared trunk in the image models."""

import itertools

import pytest
import tiny_images
import torch

import laws
from scmixvi.core import MixturePosterior, component_elbos, miselbo, siwelbo
from scmixvi.image import ImageVAE
from scmixvi.image.lightning import VAETraining
from scmixvi.image.nets import ComponentOffsets, ConvFeatures, TrunkConvFeatures, trunk_mlp

S, A, B = 5, 2, 3
IMAGES = tiny_images.all_images((1, 2, 2))
RECIPES = ("mlp", "hierarchical", "iaf", "composite")


def trunk(name, n_components=S):
    return tiny_images.recipe(name, n_components, encoder_sharing="trunk")


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("sharing", ["separate", "trunk"])
def test_some_components_are_those_of_the_whole(name, sharing):
    """An encoder's Gaussians do not depend on which others run."""
    model = tiny_images.recipe(name, S, encoder_sharing=sharing)
    x, drawn = IMAGES[:B], torch.tensor([3, 0, 3])
    whole, some = model.posterior(x), model.posterior(x, drawn)
    laws.assert_draw_law(whole, 2)
    laws.assert_draw_law(some, 2)
    zs, scores = some.sample_stratified(2)
    torch.testing.assert_close(scores, whole.log_prob_all(zs)[:, :, drawn])
    zs, scores = whole.sample_stratified(2, drawn)
    torch.testing.assert_close(scores, whole.log_prob_all(zs))
    assert some.log_weights is None


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("estimator", ["s2a", "s2s"])
@pytest.mark.parametrize("sharing", ["separate", "trunk"])
def test_shapes_and_gradients(name, estimator, sharing):
    model = tiny_images.recipe(name, S, encoder_sharing=sharing)
    x = IMAGES[torch.arange(B) * 3]
    terms = model(x, 2, estimator, A)
    assert terms.log_lik.shape == terms.log_prior.shape == (2, A, B)
    assert terms.log_q_all.shape == (2, A, S if estimator == "s2a" else A, B)
    laws.assert_pooled_not_below_stratified(*terms)
    siwelbo(*terms).mean().backward()
    for part in model.modules():
        if isinstance(part, ComponentOffsets) and estimator == "s2s" and "composite" not in name:
            assert (part.offsets.grad.abs().sum((1, 2)) > 0).sum() == A
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", RECIPES)
def test_a_trunk_learns_everywhere_and_its_components_can_be_renamed(name):
    model, x = trunk(name, 3), IMAGES[torch.arange(B) * 3]
    terms = model(x, 1)
    laws.assert_permutation_invariant(*terms)
    laws.assert_every_parameter_has_gradient(model, -miselbo(*terms).mean())
    assert component_elbos(*terms[:3]).std(0).min() > 0, "components differ from the start"
    posterior = model.posterior(x)
    zs, scores = posterior.sample_stratified(1)
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, ComponentOffsets):
                part.offsets.copy_(part.offsets[[2, 0, 1]])
    torch.testing.assert_close(model.posterior(x).log_prob_all(zs), scores[:, :, [2, 0, 1]])


@pytest.mark.parametrize("sharing", ["separate", "trunk"])
def test_bounds_against_the_integral(sharing):
    weights = [0.4, 0.1, 0.2, 0.05, 0.25]
    for given in (None, weights):
        model = tiny_images.recipe("mlp", S, encoder_sharing=sharing, weights=given)
        x = IMAGES[:2]
        exact = tiny_images.integrate(model, x).log_evidence
        with torch.no_grad():
            found = {
                name: torch.stack([miselbo(*model(x, 2, name, A)) for _ in range(300)])
                for name in ("all", "s2a", "s2s")
            }
        for draws in found.values():
            laws.assert_bound(draws, exact)
        error = ((found["all"].var(0) + found["s2a"].var(0)) / 300).sqrt()
        assert ((found["all"].mean(0) - found["s2a"].mean(0)).abs() < 4 * error).all()


@pytest.mark.parametrize("estimator", ["all", "s2a"])
@pytest.mark.parametrize("sharing", ["separate", "trunk"])
@pytest.mark.parametrize("name", ["mlp", "hierarchical"])
def test_path_gradients_are_unbiased(name, sharing, estimator):
    """Their mean is the gradient of the whole bound, though they leave the scores' own out."""
    weights = [0.4, 0.1, 0.2, 0.05, 0.25] if name == "mlp" else None
    model = tiny_images.recipe(name, S, encoder_sharing=sharing, weights=weights)
    parameters, x = list(model.parameters()), IMAGES[:2]

    def gradients(n_draws, *arguments):
        found = []
        for _ in range(n_draws):
            loss = -miselbo(*model(x, 1, *arguments)).mean()
            each = torch.autograd.grad(loss, parameters, allow_unused=True)
            pairs = zip(each, parameters, strict=True)
            found.append(torch.cat([(p * 0 if g is None else g).flatten() for g, p in pairs]))
        found = torch.stack(found).detach()
        return found.mean(0), found.var(0) / n_draws

    n_draws = 300 if name == "mlp" else 100
    path = gradients(3 * n_draws, estimator, A, True)
    laws.assert_same_mean(gradients(n_draws), path)


@pytest.mark.parametrize("weights", [None, [0.5, 0.5]])
def test_path_gradients_do_not_vary_at_the_exact_posterior(weights):
    """When all encoders give the exact posterior there is nothing to learn, draw by draw."""
    model = laws.LinearGaussian()
    loc = model.mean.expand(2, -1, -1).clone().requires_grad_()
    log_scale = (0.5 * model.variance.log()).expand(2, -1, -1).clone().requires_grad_()
    log_weights = None if weights is None else torch.tensor(weights, dtype=torch.float64).log()
    (z,), _ = laws.gaussian_mixture(loc, log_scale.exp(), log_weights).sample_stratified(3)
    constant = laws.gaussian_mixture(loc.detach(), log_scale.detach().exp(), log_weights)
    log_lik = torch.distributions.Normal(z @ model.weight.T, model.noise).log_prob(model.x).sum(-1)
    log_prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    bound = miselbo(log_lik, log_prior, constant.log_prob_all((z,)), log_weights)
    for gradient in torch.autograd.grad(bound.sum(), (loc, log_scale)):
        assert gradient.abs().max() < 1e-9


def test_path_gradients_leave_the_value_alone_and_the_undrawn_encoders_out():
    model, x = tiny_images.recipe("mlp", S), IMAGES[:B]
    torch.manual_seed(1)
    plain = model(x, 1, "s2a", A)
    torch.manual_seed(1)
    path = model(x, 1, "s2a", A, path_gradient=True)
    for a, b in zip(plain[:3], path[:3], strict=True):
        torch.testing.assert_close(a, b)
    miselbo(*path).mean().backward()
    touched = (model.posterior.levels[0].head.weight.grad.abs().sum((1, 2)) > 0).sum()
    assert touched == A
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(ValueError, match="right for L = 1 alone"):
        model(x, 2, "s2a", A, path_gradient=True)


@pytest.mark.parametrize(
    "layer", [torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(4)], ids=["dropout", "batch norm"]
)
def test_where_path_gradients_are_not_allowed_the_whole_one_is_taken(layer):
    """With a flow, which would have to be inverted, and with encoders that look at the batch."""
    assert not tiny_images.recipe("iaf", S).posterior.allows_path_gradients
    model, x = tiny_images.recipe("mlp", S), IMAGES[:B]
    assert model.posterior.allows_path_gradients
    model.posterior.levels[0].features.insert(1, layer.double())
    assert not model.posterior.allows_path_gradients
    miselbo(*model(x, 1, "s2a", A, path_gradient=True)).mean().backward()
    assert (model.posterior.levels[0].head.weight.grad.abs().sum((1, 2)) > 0).all()


def test_training_takes_path_gradients_where_they_are_right():
    model, asked = tiny_images.recipe("mlp", S).float(), []
    forward = model.forward
    model.forward = lambda *arguments: asked.append(arguments[1:]) or forward(*arguments)
    x = IMAGES[:B].float()
    for objective, n_samples in ((miselbo, 1), (miselbo, 2), (siwelbo, 1)):
        training = VAETraining(
            model, objective, n_samples, warmup_epochs=0, estimator="s2a", n_drawn=A
        )
        training.bound(x)
        training.eval().bound(x)
    assert asked == [
        (1, "s2a", A, True),
        (1,),
        (2, "s2a", A, False),
        (2,),
        (1, "s2a", A, False),
        (1,),
    ]
    asked.clear()
    for estimator, wanted in (("all", True), ("all", None), ("s2a", False)):
        training = VAETraining(model, estimator=estimator, n_drawn=A, path_gradient=wanted)
        training.bound(x, beta=0.5)
        training.eval().bound(x)
    assert asked == [(1, "all", A, True), (1,), (1,), (1,), (1, "s2a", A, False), (1,)]
    for arguments in ((siwelbo, 1, 0), (miselbo, 2, 0)):
        with pytest.raises(ValueError, match="path gradients are right for the objective miselbo"):
            VAETraining(model, *arguments, path_gradient=True)


def test_a_trunk_grows_by_one_vector_a_component():
    def n_weights(n_components):
        return sum(p.numel() for p in trunk("mlp", n_components).posterior.parameters())

    assert n_weights(7) - n_weights(6) == 2 * 5, "a vector before the gate of five units"


def test_trunk_layers_add_their_vector_before_the_gate():
    net = trunk_mlp([4, 6, 3], True, S)
    x = torch.randn(B, 4)
    hidden = net[1](net[0](x))
    linear, offsets = net[2], net[3].offsets
    expected = [torch.nn.functional.glu(linear(hidden) + offsets[s]) for s in range(S)]
    torch.testing.assert_close(net(x), torch.stack(expected))
    relu = trunk_mlp([4, 3], False, S)
    expected = [torch.relu(relu[0](x) + relu[1].offsets[s]) for s in range(S)]
    torch.testing.assert_close(relu(x), torch.stack(expected))


def test_convolutions_of_some_components():
    x, drawn = torch.rand(B, 1, 4, 4), torch.tensor([2, 0])
    for kind in (ConvFeatures, TrunkConvFeatures):
        net = kind(S, (1, 4, 4), (3, 2), (3, 3), (1, 2))
        torch.testing.assert_close(net(x, drawn), net(x)[drawn])
        assert net(x).shape == (S, B, net.n_features)


def test_training_takes_some_and_validation_all():
    model = trunk("mlp").float()
    x = IMAGES[:B].float()
    for estimator, n_drawn in itertools.product(("s2a", "s2s"), (1, 2)):
        training = VAETraining(
            model, lambda *terms, beta=1.0: terms, estimator=estimator, n_drawn=n_drawn
        )
        n_scored = S if estimator == "s2a" else n_drawn
        assert training.train().bound(x)[2].shape == (1, n_drawn, n_scored, B)
        assert training.bound(x, beta=0.5)[2].shape == (1, n_drawn, n_scored, B)
        assert training.eval().bound(x)[2].shape == (1, S, S, B)


def test_all_drawn_is_the_whole():
    model = tiny_images.recipe("mlp", 3, weights=[0.5, 0.3, 0.2])
    found = []
    for estimator in ("all", "s2a", "s2s"):
        torch.manual_seed(3)
        found.append(miselbo(*model(IMAGES, 2, estimator, 3)))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_doors():
    model = trunk("mlp")
    with pytest.raises(ValueError, match="estimator must be one of"):
        model(IMAGES, 1, "some")
    with pytest.raises(ValueError, match="from 1 to n_components = 5"):
        model(IMAGES, 1, "s2a", 6)
    with pytest.raises(ValueError, match="from 1 to n_components = 5"):
        VAETraining(model, estimator="s2s", n_drawn=0)
    with pytest.raises(ValueError, match=r"encoder_sharing must be one of \['separate', 'trunk'\]"):
        tiny_images.recipe("mlp", 2, encoder_sharing="both")
    each = tiny_images.combination(1, "coupling", "normal", "mlp", 3)
    with pytest.raises(ValueError, match="flows that all components share"):
        each(tiny_images.all_images((1, 3, 2))[:2], 1, "s2s", 2)
    assert each(tiny_images.all_images((1, 3, 2))[:2], 1, "s2a", 2).log_q_all.shape == (1, 2, 3, 2)


class Learned(tiny_images.Weighted):
    """Weights that are learned, and named as the estimators ask for."""

    def __init__(self, posterior, is_named):
        super().__init__(posterior, lambda x: self.logits.log_softmax(0))
        self.logits, self.is_named = torch.nn.Parameter(torch.zeros(S).double()), is_named

    def __getattr__(self, name):
        if name == "log_weights" and self.is_named:
            return self.logits.log_softmax(0)
        return super().__getattr__(name)

    def forward(self, x, *components):
        posterior = super().forward(x, *components)
        if not components or self.is_named:
            return posterior
        return MixturePosterior(posterior.stages, self.logits[components[0]].log_softmax(0))


@pytest.mark.parametrize("is_named", [True, False])
def test_weights_that_are_learned_get_a_gradient_beside_path_gradients(is_named):
    inner = tiny_images.recipe("mlp", S)
    model = ImageVAE(Learned(inner.posterior, is_named), inner.prior, inner.decoder)
    miselbo(*model(IMAGES[:B], path_gradient=True)).sum().backward()
    assert model.posterior.logits.grad.any()


@pytest.mark.parametrize("is_named", [True, False])
@pytest.mark.parametrize("options", [("s2a", A), ("s2a", A, True), ("s2s", A)], ids=str)
def test_weights_that_are_learned_are_refused(options, is_named):
    """Their gradient would lack that of the choice of components."""
    inner = tiny_images.recipe("mlp", S)
    model = ImageVAE(Learned(inner.posterior, is_named), inner.prior, inner.decoder)
    with torch.no_grad():
        assert miselbo(*model(IMAGES[:B], 1, "s2a", A)).isfinite().all(), "looked at, not learned"
    if not is_named and len(options) == 3:
        return  # a path's scores are constants, and so are their weights
    with pytest.raises(ValueError, match="weights that are learned no right gradient"):
        model(IMAGES[:B], 1, *options)
