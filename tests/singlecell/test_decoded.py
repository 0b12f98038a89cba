"""The compiled pass from the decoder's heads to the likelihood is scvi's, and falls back to it."""

import numpy as np
import pytest
import torch
from scvi.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial

from scmixvi.singlecell._loops import compiled as _compiled
from scmixvi.singlecell._loops import kernels as _kernels
from scmixvi.singlecell._parts import decoded as _decoded
from scmixvi.singlecell._parts.decoded import Heads, fused_log_likelihood, undecoded
from scmixvi.singlecell._parts.likelihoods import log_likelihood

N_CELLS, N_HIDDEN, N_ROWS = 7, 5, 3


def heads_and_counts(family="zinb", n_genes=11, theta_shape=None, seed=0):
    """Heads in float32 that want gradients, and counts, some of them large."""
    torch.manual_seed(seed)
    theta = torch.randn(theta_shape or (n_genes,)).exp()
    logits = (torch.randn(n_genes, N_HIDDEN), torch.randn(n_genes))
    heads = Heads(
        torch.randn(N_ROWS * N_CELLS, N_HIDDEN),
        torch.randn(n_genes, N_HIDDEN),
        torch.randn(n_genes),
        *(logits if family == "zinb" else (None, None)),
        torch.randn(N_ROWS * N_CELLS, 1) + 4,
        theta,
    )
    x = torch.poisson(torch.randn(N_CELLS, n_genes).mul(2).exp() * 0.5)
    x[0], x[1, :3], x[2, 0] = 0, torch.tensor([63.0, 64.0, 65.0]), 5000
    return Heads(*(None if t is None else t.requires_grad_() for t in heads)), x


def value_and_gradients(function, heads, x):
    value = function(heads, x)
    torch.manual_seed(1)
    weights = torch.randn(value.shape).to(value)
    wanted = [t for t in heads if t is not None and t.requires_grad]
    return [value.detach(), *torch.autograd.grad(value, wanted, weights)]


def fused(heads, x):
    return log_likelihood(undecoded(heads, (N_ROWS,)), x, heads.theta)


def plain(heads, x):
    return heads.distribution((N_ROWS,)).log_prob(x).sum(-1)


def widened(heads):
    return Heads(*(None if t is None else t.detach().double().requires_grad_() for t in heads))


@pytest.fixture
def no_fallback(monkeypatch):
    def refuse(*_):
        raise AssertionError("the compiled pass gave up")

    monkeypatch.setattr(Heads, "distribution", refuse)


@pytest.mark.parametrize("family", ["zinb", "nb"])
@pytest.mark.parametrize("n_genes", [11, 256, 300])
@pytest.mark.parametrize("per_cell", [False, True])
@pytest.mark.parametrize("n_threads", [1, 3])
def test_values_and_gradients_are_scvi_s(family, n_genes, per_cell, n_threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    heads, x = heads_and_counts(
        family, n_genes=n_genes, theta_shape=(N_CELLS, n_genes) if per_cell else None
    )
    expected = value_and_gradients(plain, widened(heads), x.double())
    monkeypatch.setattr(Heads, "distribution", None)
    found = value_and_gradients(fused, heads, x)
    torch.testing.assert_close(found[0].double(), expected[0], rtol=1e-5, atol=1e-4)
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        scale = theirs.abs().amax().item()
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("family", ["zinb", "nb"])
@pytest.mark.parametrize("log_library", [-10.0, 5.0, 15.0])
@pytest.mark.parametrize("inverse_dispersion", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("logit", [-500.0, 0.0, 500.0])
def test_extremes(family, log_library, inverse_dispersion, logit, no_fallback, monkeypatch):
    """As near to the exact value as scvi in float32, or nearer."""
    heads, x = heads_and_counts(family)
    with torch.no_grad():
        heads.log_library.fill_(log_library), heads.theta.fill_(inverse_dispersion)
        if family == "zinb":
            heads.logit_bias.fill_(logit)
    ours = value_and_gradients(fused, heads, x)
    monkeypatch.undo()
    theirs = value_and_gradients(plain, heads, x)
    exact = value_and_gradients(plain, widened(heads), x.double())
    for found, stock, reference in zip(ours, theirs, exact, strict=True):
        allowed = (stock - reference).abs().max() + 2e-5 * (1 + reference.abs().max())
        assert found.isfinite().all()
        assert (found - reference).abs().max() <= allowed


@pytest.mark.parametrize("family", ["zinb", "nb"])
@pytest.mark.parametrize("n_genes", [11, 256, 300])
@pytest.mark.parametrize("shift", [-1000.0, -400.0, 400.0, 1000.0])
def test_a_shift_of_all_scores_changes_nothing(family, n_genes, shift, no_fallback):
    """Nor does the room left in the last tile of genes take part, however low the scores are."""
    heads, x = heads_and_counts(family, n_genes=n_genes)
    with torch.no_grad():  # so that sums of 1000 and a score are exact in float32
        for tensor in (heads.hidden, heads.weight, heads.bias):
            tensor.mul_(16).round_().div_(16)
    expected = value_and_gradients(fused, heads, x)
    with torch.no_grad():
        heads.bias.add_(shift)
    for found, unshifted in zip(value_and_gradients(fused, heads, x), expected, strict=True):
        torch.testing.assert_close(found, unshifted, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("which", ["hidden", "bias", "logit_bias", "log_library", "theta"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_a_number_is_left_to_scvi(which, value):
    heads, x = heads_and_counts()
    with torch.no_grad():
        getattr(heads, which).view(-1)[3] = value
    assert fused_log_likelihood(undecoded(heads, (N_ROWS,)), x) is None


@pytest.mark.parametrize("change", [lambda x: x + 0.5, lambda x: x - 1, lambda x: x / 0])
def test_other_values_than_counts_are_left_to_scvi(change):
    heads, x = heads_and_counts()
    assert fused_log_likelihood(undecoded(heads, (N_ROWS,)), change(x)) is None


def test_other_types_and_autocast_are_left_to_scvi():
    heads, x = heads_and_counts()
    assert fused_log_likelihood(undecoded(widened(heads), (N_ROWS,)), x.double()) is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fused_log_likelihood(undecoded(heads, (N_ROWS,)), x) is None


@pytest.mark.parametrize("family", ["zinb", "nb"])
def test_where_the_loops_do_not_run_the_analytic_formulas_do(family, monkeypatch):
    """As on a GPU: no call of scvi's own log_prob, and the same numbers."""
    heads, x = heads_and_counts(family)
    expected = value_and_gradients(plain, heads, x)
    monkeypatch.setattr(_decoded, "_covered", lambda heads, x: False)
    cls = NegativeBinomial if family == "nb" else ZeroInflatedNegativeBinomial
    monkeypatch.setattr(cls, "log_prob", None)
    for ours, theirs in zip(value_and_gradients(fused, heads, x), expected, strict=True):
        scale = theirs.abs().amax().item()
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * scale)


def test_under_autocast_parameters_are_float32():
    heads, x = heads_and_counts()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        px = undecoded(heads, (N_ROWS,))
        assert {px.mu.dtype, px.zi_logits.dtype, px.scale.dtype} == {torch.float32}
        value = log_likelihood(undecoded(heads, (N_ROWS,)), x, heads.theta)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, plain(heads, x), rtol=0.05, atol=1.0)


def test_each_gradient_alone():
    heads, x = heads_and_counts()
    expected = value_and_gradients(fused, heads, x)[1:]
    for alone, wanted in zip(heads, expected, strict=True):
        for tensor in heads:
            tensor.requires_grad_(tensor is alone)
        torch.testing.assert_close(value_and_gradients(fused, heads, x)[1], wanted)


def test_second_derivatives_are_scvi_s():
    heads, x = heads_and_counts()

    def penalty(function):
        slope = torch.autograd.grad(function(heads, x).sum(), heads.weight, create_graph=True)[0]
        return torch.autograd.grad(slope.square().sum(), [heads.hidden, heads.theta])

    for ours, theirs in zip(penalty(fused), penalty(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def test_backward_twice_over_a_kept_graph_gives_the_same():
    heads, x = heads_and_counts()
    value = fused(heads, x).sum()
    first = torch.autograd.grad(value, heads, retain_graph=True)
    for one, two in zip(first, torch.autograd.grad(value, heads), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("family", "cls"), [("zinb", ZeroInflatedNegativeBinomial), ("nb", NegativeBinomial)]
)
def test_reading_anything_gives_scvi_s_distribution(family, cls):
    heads, x = heads_and_counts(family)
    px, stock = undecoded(heads, (N_ROWS,)), heads.distribution((N_ROWS,))
    assert isinstance(px, cls)
    assert torch.equal(px.mean, stock.mean)
    assert type(px) is cls
    assert torch.equal(px.scale, stock.scale)
    assert torch.equal(px.log_prob(x), stock.log_prob(x))
    with torch.no_grad():
        px = undecoded(heads, (N_ROWS,))
    assert not px.mu.requires_grad


def test_small_and_large_counts_meet():
    """Table and series: log Gamma(x + theta) / Gamma(theta) / x! on both sides of the table."""
    theta = np.array([1e-3, 0.7, 30.0, 4e3] * 2, np.float32)
    dense = [[count] * 8 for count in (63, 64, 1e5, 0)]
    sparse = [
        [0] * gene + [count] + [0] * (7 - gene) for gene, count in enumerate((1, 63, 64, 1e5))
    ]
    x = np.array([*dense, *sparse], np.float32)
    tables = _kernels._tables(theta, _kernels.N_TABLED)
    value, slope = np.empty_like(x), np.empty_like(x)
    for row, *out in zip(x, value, slope, strict=True):
        _kernels.constant_of(theta, row, *tables, *out, np.empty(9, np.int32))
    counts, shape = torch.from_numpy(x).double(), torch.from_numpy(theta).double()
    exact = torch.lgamma(counts + shape) - torch.lgamma(shape) - torch.lgamma(counts + 1)
    np.testing.assert_allclose(value, exact, rtol=2e-6, atol=1e-6)
    exact = torch.digamma(counts + shape) - torch.digamma(shape)
    np.testing.assert_allclose(slope, exact, rtol=2e-6, atol=1e-12)


def test_without_a_folder_for_compiled_code_it_is_compiled_anew(monkeypatch):
    def njit(cache=False, **_):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(_compiled, "njit", njit)
    assert _compiled.compiled()(len) is len


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_slopes_are_computed_where_somebody_wants_them(context, monkeypatch):
    kept, score = [], _kernels.score

    def spy(*arguments):
        kept.append(arguments[-1])
        return score(*arguments)

    monkeypatch.setattr(_kernels, "score", spy)
    heads, x = heads_and_counts()
    with context():
        fused_log_likelihood(undecoded(heads, (N_ROWS,)), x)
    assert kept == [context is torch.enable_grad]


def test_what_could_not_be_computed_can_be_asked_again():
    heads, _ = heads_and_counts()
    px = undecoded(heads._replace(weight=torch.zeros(3, 4)), (N_ROWS,))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            _ = px.mu
