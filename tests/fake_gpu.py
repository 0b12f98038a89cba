"""A GPU that computes nothing: on which device every tensor would lie, and who would wait for it.

torch's fake tensors know their shape, type and device and hold no numbers. Under this mode those of
the device "fakegpu" may not meet those of the CPU, and reading one, which makes a real GPU finish
its work first, is noted down. Run as a script it prints, as JSON, what became of each case:
registering a device changes torch for the rest of the process.
"""

import json
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

DEVICE = "fakegpu"
PACKAGE = str(Path(__file__).parents[1] / "scmixvi")


class FakeGPU(FakeTensorMode):
    """Fake tensors; asked for their value they answer True, or 0."""

    avoid_device_init = True  # what `torch.tensor` makes is never made on the device itself

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Answer who reads a number, noting those of the device; let torch do all else."""
        if func is torch.ops.aten._local_scalar_dense.default and args[0].constant is None:
            if args[0].device.type == DEVICE:
                self.waits.append(_place(traceback.extract_stack()))
            return args[0].dtype is torch.bool
        return super().__torch_dispatch__(func, types, args, kwargs or {})

    def run(self, call: Callable[[], object]) -> dict:
        """What became of a call: `error`, if any, and where it would have waited."""
        self.waits.clear()
        try:
            call()
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error} in {_place_of(error)}"}
        return {"waits": list(self.waits)}


def _place(frames: traceback.StackSummary) -> str:
    ours = [frame for frame in frames if frame.filename.startswith(PACKAGE)]
    return f"{ours[-1].filename}:{ours[-1].lineno}" if ours else "nowhere in scmixvi"


def _place_of(error: Exception) -> str:
    return _place(traceback.extract_tb(error.__traceback__))


def register() -> None:
    """Make the device known to torch, with the types that it could multiply under autocast."""
    from torch.utils import backend_registration

    class Module(backend_registration._DummyBackendModule):
        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            return [torch.bfloat16, torch.float16]

    backend_registration._setup_privateuseone_for_python_backend(DEVICE, backend_module=Module())


def there(tensor: Tensor | None) -> Tensor | None:
    """A tensor of the same shape and type on the device."""
    return None if tensor is None else torch.empty(tensor.shape, dtype=tensor.dtype, device=DEVICE)


def moved(module: nn.Module) -> nn.Module:
    """The module with its parameters and buffers on the device."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = nn.Parameter(there(weight), weight.requires_grad)
        part._buffers.update({name: there(value) for name, value in part._buffers.items()})
    return module


def mistakes() -> Iterator[tuple[str, dict]]:
    """What has to be found: tensors of two devices in one sum, and a number that is read."""
    with FakeGPU() as gpu:
        yield "two devices", gpu.run(lambda: torch.zeros(2, device=DEVICE) + torch.zeros(2))
        yield "a wait", gpu.run(lambda: float(torch.zeros(2, device=DEVICE).sum()))


def images() -> Iterator[tuple[str, dict]]:
    """A training step by two estimators, and the evaluations, of every recipe."""
    from tiny_images import TINY_RECIPES

    from scmixvi.image.lightning import recipe_training

    for recipe, sizes in TINY_RECIPES.items():
        vae = recipe_training(recipe, 3, sizes).vae
        with FakeGPU() as gpu:
            for question, call in questions_of_images(moved(vae)):
                yield f"{recipe}, {question}", gpu.run(call)


def questions_of_images(vae: nn.Module) -> Iterator[tuple[str, Callable[[], object]]]:
    """Training steps, then what is asked of a trained model."""
    from scmixvi.core import miselbo
    from scmixvi.image.pixelcnn import PixelCNNDecoder

    x = there(torch.empty(4, *vae.image_size))
    vae.train()
    yield "step", lambda: miselbo(*vae(x)).sum().backward()
    yield "step by s2a", lambda: miselbo(*vae(x, 1, "s2a", path_gradient=True)).sum().backward()
    yield "refined", lambda: vae.nll(x, 2, n_refinement_steps=1)
    yield "encoded", lambda: (vae.encode(x), vae.jsd(x, 2))
    if not isinstance(vae.decoder, PixelCNNDecoder):  # which draws pixel after pixel
        yield "images", lambda: (vae.reconstruct(x), vae.sample(2))


CELL_OPTIONS = {
    "defaults": {},
    "nb": {"gene_likelihood": "nb"},
    "poisson": {"gene_likelihood": "poisson"},
    "normal": {"gene_likelihood": "normal"},
    "dispersion of every cell": {"dispersion": "gene-cell"},
    "dispersion of batches": {"dispersion": "gene-batch"},
    "amortized weights": {"mixture_weights": "amortized"},
    "learned weights": {"mixture_weights": "learned"},
    "two samples": {"n_importance_samples": 2},
    "s2a": {"estimator": "s2a", "n_drawn": 2},
    "s2s": {"estimator": "s2s", "n_drawn": 2},
    "trunk": {"encoder_sharing": "trunk"},
    "no batch norm": {"use_batch_norm": "none"},
    "library of every cell": {"use_observed_lib_size": False},
}


def cells() -> Iterator[tuple[str, dict]]:
    """A training step with every option, and what is asked of a trained model."""
    from counts import make_adata
    from scmixvi import MixtureSCVI

    adata = make_adata(n_cells=20, n_genes=7)
    MixtureSCVI.setup_anndata(adata, batch_key="batch")
    for name, options in CELL_OPTIONS.items():
        model = MixtureSCVI(adata, n_components=3, n_hidden=8, n_latent=2, **options)
        batch = next(iter(model._make_data_loader(adata=model.adata, batch_size=20)))
        with FakeGPU() as gpu:
            tensors = {key: there(value) for key, value in batch.items()}
            for question, call in questions_of_cells(moved(model.module), tensors):
                yield f"{name}, {question}", gpu.run(call)


def questions_of_cells(module: nn.Module, tensors: dict) -> Iterator[tuple[str, Callable]]:
    """A training step, then what is asked of a trained model."""
    from scmixvi.singlecell._queries.evidence import cell_evidence
    from scmixvi.singlecell._training.refinement import resampled

    sizes = {"n_rounds": 1, "n_draws": 10, "n_final": 10}
    module.to = lambda *_, **__: module  # scvi-tools moves it before every question
    module.train()
    yield "step", lambda: module(tensors, loss_kwargs={"kl_weight": 0.5})[2].loss.backward()
    module.eval()
    yield "refined", lambda: module.marginal_ll(tensors, 4, n_refinement_steps=1)
    yield "evidence", lambda: cell_evidence(module, tensors, 1, **sizes)
    yield "bounds", lambda: module.component_bounds(tensors)
    yield "drawn anew", lambda: resampled(module, tensors)


if __name__ == "__main__":
    register()
    print(
        json.dumps({name: found for cases in (mistakes, images, cells) for name, found in cases()})
    )
