"""The benchmark of the image models: what it counts, compares and writes."""

import json
import shutil

import pytest
import torch

from benchmarks import image as benchmark
from scmixvi.core import miselbo, products
from scmixvi.image.checkpoints import build_vae


def test_it_writes_what_it_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "_in_own_process", benchmark.measure)
    out = tmp_path / "image.json"
    words = f"--device cpu --recipes mlp --sizes tiny --components 1 2 --steps 2 --out {out}"
    benchmark.main([*words.split(), "--threads", "1", "--batch-size", "10"])
    record = json.loads(out.read_text())
    assert [(c["n_components"], c["recipe"]) for c in record["cells"]] == [(1, "mlp"), (2, "mlp")]
    for cell in record["cells"]:
        floor = max(
            cell["operations"] / record["rates"]["operations_per_second"],
            cell["bytes"] / record["rates"]["bytes_per_second"],
        )
        assert cell["floor_seconds"] == pytest.approx(floor)
        assert cell["times_floor"] == pytest.approx(cell["cpu_seconds_per_step"] / floor)
        assert cell["peak_bytes"] >= 0
        assert cell["cpu_seconds_per_step"] > 0
    assert list(record["growth_in_S"]["mlp tiny float32 eager"]) == ["1", "2"]
    assert record["growth_in_S"]["mlp tiny float32 eager"]["1"] == 1.0
    assert capsys.readouterr().out.count("mlp ") == 3


def test_the_floor_of_known_work():
    figures = {"operations": 8e9, "bytes": 1e9, "seconds_per_step": 3.0}
    figures["cpu_seconds_per_step"] = 4.0
    rates = {"operations_per_second": 4e9, "bytes_per_second": 1e10}
    on_cpu = benchmark._compared({"device": "cpu"}, figures, rates)
    assert on_cpu == {"floor_seconds": 2.0, "times_floor": 2.0}
    on_gpu = benchmark._compared({"device": "cuda"}, figures, rates)
    assert on_gpu == {"floor_seconds": 2.0, "times_floor": 1.5}


@pytest.mark.parametrize("by_onednn", [True, False])
def test_operations_and_bytes_of_a_known_product(monkeypatch, by_onednn):
    if by_onednn and not torch.backends.mkldnn.is_available():
        pytest.skip("torch has no oneDNN")
    monkeypatch.setattr(products, "onednn_is_faster", lambda: by_onednn)
    monkeypatch.setattr(products, "_WIDE", 0)
    a = torch.randn(5, 7)
    weight = torch.randn(7, 11, requires_grad=True)

    def step():
        loss = products.linear(a, weight.T).exp().sum()
        loss.backward()
        return loss

    operations, kept = benchmark.count_work(step)
    assert operations == 2 * (2 * 5 * 7 * 11)  # the product and the gradient of its weight
    assert kept == 4 * (5 * 7 + 5 * 11)  # a, and what exp returned


SIZES = [(name, benchmark.TINY[name]) for name in benchmark.TINY]


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "sizes"), SIZES)
def test_a_model_compiles_into_one_graph_without_a_break(recipe, sizes):
    vae = build_vae(recipe, 2, sizes)
    x = (torch.rand(3, 1, 28, 28) > 0.5).float()
    torch.manual_seed(1)
    expected = vae(x)[:3]
    vae.compile(backend="eager", fullgraph=True)
    torch.manual_seed(1)
    torch.testing.assert_close(vae(x)[:3], expected, rtol=0, atol=0)


@pytest.mark.parametrize(("recipe", "network"), [("mlp", "net"), ("vanilla", "network")])
def test_the_network_of_a_decoder_compiles_by_itself_for_the_likelihood(recipe, network):
    torch.compiler.reset()
    vae = build_vae(recipe, 2, benchmark.TINY[recipe])
    x = (torch.rand(3, 1, 28, 28) > 0.5).float()
    torch.manual_seed(1)
    expected, seen = vae.nll(x, 5), []

    def watch(graph, inputs):
        seen.append(graph)
        return graph.forward

    getattr(vae.decoder, network).compile(backend=watch, fullgraph=True)
    torch.manual_seed(1)
    torch.testing.assert_close(vae.nll(x, 5), expected, rtol=0, atol=0)
    assert len(seen) == 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_step_has_the_gradient_of_an_eager_one():
    vae = build_vae("mlp", 2, benchmark.TINY["mlp"])
    x = (torch.rand(6, 1, 28, 28) > 0.5).float()
    means = vae.posterior(x).stages[0].conditional().mean.detach()

    def gradients():
        vae.zero_grad()
        vae.decoder(means.unsqueeze(0)).log_prob(x).mean().backward()
        return [p.grad.clone() for p in vae.decoder.parameters()]

    expected = gradients()
    vae.decoder.compile()
    torch.testing.assert_close(gradients(), expected, rtol=1e-4, atol=1e-5)
    vae.compile()
    loss = -miselbo(*vae(x)).mean()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in vae.parameters())


@pytest.mark.gpu
@pytest.mark.parametrize("mode", benchmark.MODES)
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_every_mode_trains_on_a_gpu(mode, precision):
    _, step = benchmark.training_step("composite", "tiny", 2, 10, "cuda", precision, mode)
    losses = [float(step()) for _ in range(20)]
    assert losses[-1] < losses[0]
