"""Products by oneDNN are torch's own, with their gradients, and only where they are meant to be."""

import pytest
import torch
from torch.nn import functional

from scmixvi.core import products

onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN")


@pytest.fixture
def calls(monkeypatch):
    """Take oneDNN for the faster one whatever the processor, and count its products."""
    made, by_onednn = [], products._by_onednn
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(products, "_WIDE", 0)
    monkeypatch.setattr(products, "_by_onednn", lambda *ab: made.append(ab) or by_onednn(*ab))
    return made


def matrices(m=5, k=7, n=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(m, k, generator=generator), torch.randn(n, k, generator=generator)


@onednn
@pytest.mark.parametrize("turned", [False, True])
def test_equals_torch(calls, turned):
    a, b = matrices()
    if turned:  # views that are not contiguous
        a, b = a.T.contiguous().T, b.T.contiguous().T
    torch.testing.assert_close(products.product(a, b), a @ b.T)
    torch.testing.assert_close(products.linear(a, b), a @ b.T)
    assert len(calls) == 2


@onednn
@pytest.mark.parametrize("suits", [True, False])
def test_the_transposed_product(calls, monkeypatch, suits):
    monkeypatch.setattr(products, "_WIDE", 0 if suits else 10**9)
    a, b = matrices(m=6, k=4)[0], matrices(m=6, k=3)[0]
    torch.testing.assert_close(products.transposed_product(a, b), a.T @ b)
    assert len(calls) == suits


@onednn
@pytest.mark.parametrize("with_bias", [False, True])
def test_gradients_are_those_of_a_linear_layer(calls, with_bias):
    def gradients(linear):
        inputs = [t.requires_grad_() for t in (*matrices(), torch.ones(3))][: 2 + with_bias]
        loss = linear(*inputs).sin().sum()
        first = torch.autograd.grad(loss, inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
        return loss, *first, *second

    expected = gradients(functional.linear)
    assert not calls
    for found, wanted in zip(gradients(products.linear), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)
    assert calls


@onednn
def test_leading_axes_are_rows(calls):
    a, b = matrices(m=6)
    layer = products.Linear(7, 3)
    layer.load_state_dict({"weight": b, "bias": torch.ones(3)})
    found = layer(a.view(2, 3, 7))
    torch.testing.assert_close(found, (a @ b.T + 1).view(2, 3, 3))
    assert len(calls) == 1


@onednn
@pytest.mark.parametrize(
    "rows", [(5, 7), (1, 5, 7), (2, 5, 7)], ids=["shared rows", "one for all", "own rows"]
)
@pytest.mark.parametrize("n_layers", [1, 2], ids=["one layer", "two layers"])
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
def test_stacked_layers(calls, monkeypatch, rows, n_layers, with_bias):
    generator = torch.Generator().manual_seed(0)
    shapes = [rows, (n_layers, 7, 3), (n_layers, 1, 3)]
    inputs = [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]

    def gradients():
        found = products.stacked_linear(*inputs[: 2 + with_bias])
        first = torch.autograd.grad(found.sin().sum(), inputs[: 2 + with_bias], create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs[:2])
        return found, *first, *second

    found = gradients()
    assert calls
    monkeypatch.setattr(products, "_WIDE", 10**9)
    x, weight, bias = inputs
    torch.testing.assert_close(found[0], x @ weight + (bias if with_bias else 0))
    for own, torchs in zip(found, gradients(), strict=True):
        torch.testing.assert_close(own, torchs, rtol=1e-5, atol=1e-4)


@onednn
@pytest.mark.parametrize("turned", [True, False])
def test_the_gradient_lies_in_memory_as_its_weight_does(calls, turned):
    """Else torch would copy it into that order."""
    a, b = matrices()
    weight = (b.T.contiguous().T if turned else b).requires_grad_()
    (found,) = torch.autograd.grad(products.linear(a, weight).sum(), weight)
    assert found.stride() == weight.stride()


@onednn
def test_a_bias_alone_has_its_gradient(calls):
    a, b = matrices()
    bias = torch.zeros(3, requires_grad=True)
    products.product(a, b, bias).sum().backward()
    torch.testing.assert_close(bias.grad, torch.full((3,), 5.0))


@onednn
def test_only_wanted_gradients_are_computed(calls):
    a, b = matrices()
    products.linear(a, b.requires_grad_()).sum().backward()
    assert a.grad is None
    assert b.grad is not None
    assert len(calls) == 2


@onednn
def test_function_transforms(calls):
    a, b = matrices()
    rows = torch.func.vmap(lambda x: products.linear(x, b))(a.expand(2, -1, -1))
    torch.testing.assert_close(rows, (a @ b.T).expand(2, -1, -1))
    slope = torch.func.grad(lambda w: products.linear(a, w).sum())(b)
    torch.testing.assert_close(slope, a.sum(0).expand(3, -1))


@onednn
def test_forward_mode_is_torchs(calls):
    """Against differences of what is linear in each of its arguments."""
    a, b = matrices()
    da, db = matrices()
    da, db, bias, dbias = da.flip(0), db.flip(1), torch.ones(3), torch.arange(3.0)
    for layer in (products.linear, products.product):
        found, slope = torch.func.jvp(layer, (a, b, bias), (da, db, dbias))
        torch.testing.assert_close(found, a @ b.T + 1)
        torch.testing.assert_close(slope, da @ b.T + a @ db.T + dbias)
    weight = b.T.expand(2, -1, -1)
    slope = torch.func.jvp(lambda x: products.stacked_linear(x, weight), (a,), (da,))[1]
    torch.testing.assert_close(slope, (da @ b.T).expand(2, -1, -1))
    assert not calls
    products.linear(a, b)
    assert calls, "and only there"


@onednn
def test_what_is_not_a_number_stays_so(calls):
    a, b = matrices()
    a[0, 0] = torch.nan
    found = products.product(a, b)
    assert found[0].isnan().all()
    assert found[1:].isfinite().all()
    assert calls


def test_torch_multiplies_what_does_not_suit(calls):
    a, b = matrices()
    products.linear(a.double(), b.double())
    products.linear(a.to_sparse_csr(), b)
    products.linear(a[0], b)
    products.stacked_linear(a.double(), b.double().T.expand(2, -1, -1))
    with torch.autocast("cpu", torch.bfloat16):
        assert products.linear(a, b).dtype == torch.bfloat16
    with torch.backends.mkldnn.flags(enabled=False):
        products.linear(a, b)
    assert not calls


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (products.linear, [(5, 7), (3, 6)]),
        (products.linear, [(5, 7), (3, 7), (2,)]),
        (products.stacked_linear, [(5, 7), (2, 6, 3), (2, 1, 3)]),
        (products.stacked_linear, [(5, 7), (2, 7, 3), (2, 1, 2)]),
    ],
    ids=["features", "bias", "stacked features", "stacked bias"],
)
def test_of_shapes_that_do_not_fit_torch_says_why(calls, function, shapes):
    with pytest.raises(RuntimeError, match=r"shape|size|match"):
        function(*map(torch.ones, shapes))
    assert not calls


def test_a_bias_of_one_number_is_added_to_all(calls):
    a, b = matrices()
    torch.testing.assert_close(products.linear(a, b, torch.ones(1)), a @ b.T + 1)


def refuse():
    raise RuntimeError("mix of the legacy and new APIs")


@pytest.mark.parametrize("precision", [lambda: "medium", refuse])
def test_torch_multiplies_where_it_may_round(calls, monkeypatch, precision):
    """`refuse` is what torch does after its newer switches have been used."""
    monkeypatch.setattr(torch, "get_float32_matmul_precision", precision)
    products.linear(*matrices())
    assert not calls


@onednn
def test_what_torch_need_not_round_is_taken(calls, monkeypatch):
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    products.linear(*matrices())
    assert calls


def test_small_products_are_torchs(calls, monkeypatch):
    monkeypatch.setattr(products, "_WIDE", 5 * 7 * 3 + 1)
    products.linear(*matrices())
    assert not calls


@pytest.mark.parametrize("failure", [AttributeError, RuntimeError, TypeError])
def test_another_torch_is_left_alone(monkeypatch, failure):
    """Where the operator has gone, or wants something else, products are torch's."""

    def gone(*_):
        raise failure

    monkeypatch.setattr(products, "_is_amd", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(products, "_by_onednn", gone)
    assert not products.onednn_is_faster.__wrapped__()
