"""The fused likelihood is scvi's: same values, same gradients, same answer where it gives up."""

import math

import pytest
import torch
from scvi.distributions import NegativeBinomial, Normal, Poisson, ZeroInflatedNegativeBinomial

from scmixvi.singlecell._parts import likelihoods as _likelihoods
from scmixvi.singlecell._parts.likelihoods import log_likelihood

N_CELLS, N_GENES = 7, 11
THETA_SHAPES = {"gene": (11,), "gene-batch": (7, 11), "gene-cell": None}


def parameters(n_rows, dispersion="gene", dtype=torch.float64, seed=0):
    """Mean, inverse dispersion and logits that want gradients, and counts, some of them large."""
    torch.manual_seed(seed)
    shape = (n_rows, N_CELLS, N_GENES)
    mu = (torch.randn(shape, dtype=dtype) * 2).exp()
    theta = torch.randn(THETA_SHAPES[dispersion] or shape, dtype=dtype).exp()
    logits = torch.randn(shape, dtype=dtype) * 3
    x = torch.poisson(torch.randn(shape[1:], dtype=dtype).mul(2).exp() * 0.5)
    x[0], x[1, :3], x[2, 0] = 0, torch.tensor([63, 64, 65]), 5000
    return [t.requires_grad_() for t in (mu, theta, logits)] + [x]


def distribution(family, mu, theta, logits):
    if family == "nb":
        return NegativeBinomial(mu=mu, theta=theta)
    return ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=logits)


def value_and_gradients(function, family, mu, theta, logits, x):
    """[value `[K, B]`, its gradients under fixed random weights]."""
    wanted = [mu, theta] if family == "nb" else [mu, theta, logits]
    value = function(distribution(family, mu, theta, logits), x, theta)
    torch.manual_seed(1)
    weights = torch.randn(value.shape).to(value)
    return [value.detach(), *torch.autograd.grad(value, wanted, weights)]


def scvi_log_likelihood(px, x, theta=None):
    return px.log_prob(x).sum(-1)


def without_fallback(monkeypatch, family):
    """From here on scvi's own formula raises."""

    def refuse(self, value):
        raise AssertionError("the fused code gave up")

    cls = NegativeBinomial if family == "nb" else ZeroInflatedNegativeBinomial
    monkeypatch.setattr(cls, "log_prob", refuse)


def as_dtype(tensors, dtype):
    return [t.detach().to(dtype).requires_grad_(t.requires_grad) for t in tensors]


@pytest.mark.parametrize("family", ["zinb", "nb"])
@pytest.mark.parametrize("dispersion", THETA_SHAPES)
@pytest.mark.parametrize("n_rows", [1, 3])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("compiling", [False, True], ids=["", "compiling"])
def test_values_and_gradients_are_scvi_s(
    family, dispersion, n_rows, dtype, rtol, compiling, monkeypatch
):
    given = parameters(n_rows, dispersion)
    expected = value_and_gradients(scvi_log_likelihood, family, *given)
    without_fallback(monkeypatch, family)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    found = value_and_gradients(log_likelihood, family, *as_dtype(given, dtype))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == dtype
        scale = theirs.abs().amax().item()
        torch.testing.assert_close(ours.double(), theirs, rtol=rtol, atol=rtol * 0.1 * scale)


@pytest.mark.parametrize("family", ["zinb", "nb"])
def test_chunks_of_any_size_agree(family, monkeypatch):
    given = parameters(3)
    whole = value_and_gradients(log_likelihood, family, *given)
    monkeypatch.setattr(_likelihoods, "_CHUNK", 2 * N_GENES // torch.get_num_threads() + 1)
    for ours, theirs in zip(
        value_and_gradients(log_likelihood, family, *given), whole, strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("family", ["zinb", "nb"])
@pytest.mark.parametrize("dispersion", THETA_SHAPES)
@pytest.mark.parametrize("chunk", [(3, N_CELLS), (2, N_CELLS), (2, 3)])
def test_draws_may_be_taken_together(family, dispersion, chunk, monkeypatch):
    """As on a GPU, where K loops would be K times the launches."""
    given = parameters(3, dispersion)
    one_by_one = value_and_gradients(log_likelihood, family, *given)
    monkeypatch.setattr(_likelihoods, "_chunk", lambda mu: chunk)
    for ours, theirs in zip(
        value_and_gradients(log_likelihood, family, *given), one_by_one, strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("family", ["zinb", "nb"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("mean", [1e-10, 1.0, 1e4])
@pytest.mark.parametrize("inverse_dispersion", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("logit", [-50.0, 0.0, 50.0])
def test_extremes(family, dtype, mean, inverse_dispersion, logit, monkeypatch):
    """As near to the exact value as scvi in the same precision, or nearer."""
    mu, theta, logits, x = as_dtype(parameters(2), torch.float64)
    with torch.no_grad():
        mu.fill_(mean), theta.fill_(inverse_dispersion), logits.fill_(logit)
    given = as_dtype([mu, theta, logits, x], dtype)
    exact = value_and_gradients(scvi_log_likelihood, family, *as_dtype(given, torch.float64))
    theirs = value_and_gradients(scvi_log_likelihood, family, *given)
    without_fallback(monkeypatch, family)
    ours = value_and_gradients(log_likelihood, family, *given)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    for found, stock, reference in zip(ours, theirs, exact, strict=True):
        allowed = (stock - reference).abs().max() + tolerance * (1 + reference.abs().max())
        assert found.isfinite().all()
        assert (found - reference).abs().max() <= allowed


def test_beyond_the_range_of_exp_scvi_answers():
    given = parameters(2)
    with torch.no_grad():
        given[0].fill_(1e6), given[1].fill_(100.0), given[2].fill_(-2000.0)
    expected = value_and_gradients(scvi_log_likelihood, "zinb", *given)
    for ours, theirs in zip(
        value_and_gradients(log_likelihood, "zinb", *given), expected, strict=True
    ):
        assert theirs.isfinite().all()
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("family", ["zinb", "nb"])
def test_without_rows_theta_or_gradients(family):
    mu, theta, logits, x = parameters(1)
    flat = distribution(family, mu[0], theta, logits[0])
    expected = flat.log_prob(x).sum(-1)
    torch.testing.assert_close(log_likelihood(flat, x), expected, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        found = log_likelihood(flat, x, theta)
    assert found.shape == (N_CELLS,)
    assert not found.requires_grad
    torch.testing.assert_close(found, expected.detach(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("alone", range(3))
def test_each_gradient_alone(alone):
    given = parameters(3)
    expected = value_and_gradients(scvi_log_likelihood, "zinb", *given)[1 + alone]
    for i in range(3):
        given[i].requires_grad_(i == alone)
    value = log_likelihood(distribution("zinb", *given[:3]), given[3], given[1])
    torch.manual_seed(1)
    (found,) = torch.autograd.grad(value, given[alone], torch.randn(value.shape).to(value))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("family", ["zinb", "nb"])
@pytest.mark.parametrize("dispersion", THETA_SHAPES)
def test_gradcheck(family, dispersion):
    mu, theta, logits, x = parameters(2, dispersion)

    def function(mu, theta, logits):
        return log_likelihood(distribution(family, mu, theta, logits), x, theta)

    tolerances = {"eps": 1e-7, "atol": 1e-5, "rtol": 1e-4, "nondet_tol": 1e-9}
    assert torch.autograd.gradcheck(function, (mu, theta, logits), **tolerances)


def test_samples_and_components_may_be_two_axes():
    mu, theta, logits, x = parameters(6)
    px = distribution("zinb", mu.reshape(2, 3, 7, 11), theta, logits.reshape(2, 3, 7, 11))
    torch.testing.assert_close(log_likelihood(px, x, theta), px.log_prob(x).sum(-1))


@pytest.mark.parametrize(
    "change",
    [lambda x: x + 0.5, lambda x: x - 1, lambda x: x.where(x != 5000, math.nan)],
    ids=["fractional", "negative", "nan"],
)
@pytest.mark.parametrize("family", ["zinb", "nb"])
@pytest.mark.filterwarnings("ignore:The value argument")
def test_other_values_than_counts_are_left_to_scvi(family, change):
    mu, theta, logits, x = parameters(2)
    px, x = distribution(family, mu, theta, logits), change(x)
    assert torch.equal(
        log_likelihood(px, x, theta).nan_to_num(7.0), px.log_prob(x).sum(-1).nan_to_num(7.0)
    )


def test_other_families_are_left_to_scvi():
    mu, theta, _, x = parameters(2)
    for px in (Poisson(rate=mu), Normal(mu, theta, normal_mu=mu)):
        assert torch.equal(log_likelihood(px, x, theta), px.log_prob(x).sum(-1))


def test_subclasses_are_left_to_themselves():
    class Doubled(NegativeBinomial):
        def log_prob(self, value):
            return 2 * super().log_prob(value)

    mu, theta, _, x = parameters(2)
    px = Doubled(mu=mu, theta=theta)
    assert torch.equal(log_likelihood(px, x, theta), px.log_prob(x).sum(-1))


def test_bfloat16_is_computed_in_float32():
    mu, theta, logits, x = as_dtype(parameters(2), torch.float32)
    half = logits.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = log_likelihood(distribution("zinb", mu, theta, half), x, theta)
        value.sum().backward()
    exact = distribution("zinb", mu.double(), theta.double(), half.double())
    assert value.dtype == torch.float32
    assert half.grad.dtype == torch.bfloat16
    torch.testing.assert_close(value.double(), exact.log_prob(x).sum(-1), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("family", ["zinb", "nb"])
def test_second_derivatives_are_scvi_s(family):
    mu, theta, logits, x = parameters(2)

    def penalty(function):
        value = function(distribution(family, mu, theta, logits), x, theta).sum()
        slope = torch.autograd.grad(value, mu, create_graph=True)[0]
        return torch.autograd.grad(slope.square().sum(), [mu, theta])

    for ours, theirs in zip(penalty(log_likelihood), penalty(scvi_log_likelihood), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_backward_twice_over_a_kept_graph_gives_the_same():
    mu, theta, logits, x = parameters(2)
    value = log_likelihood(distribution("zinb", mu, theta, logits), x, theta).sum()
    first = torch.autograd.grad(value, [mu, theta, logits], retain_graph=True)
    for one, two in zip(first, torch.autograd.grad(value, [mu, theta, logits]), strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("shape", [(5,), (3, 11), (2, 7, 11), (1, 1, 7, 11)])
def test_a_theta_that_does_not_fit_raises(shape):
    mu, theta, logits, x = parameters(4)
    with pytest.raises(ValueError, match=r"pass it as \[G\], \[B, G\] or \[K, B, G\]"):
        log_likelihood(distribution("zinb", mu, theta, logits), x, torch.ones(shape))
