r"""Training the encoders alone, on cells resampled from the model.

An encoder has seen only the cells that it was trained on, and explains other cells worse. The
decoder knows how cells vary: given a cell's z, its counts are independent draws. So every training
cell x is replaced, in each step anew, by

.. math::
    x'_g = \begin{cases} \tilde x_g \sim p(x_g | z), \; z \sim q(z | x) & \text{with probability }
    p \\ x_g & \text{otherwise} \end{cases}
    \qquad p \sim U(0, 1)

and the encoders alone maximise the bound on log p(x'). The decoder, and with it log p(x) of every
cell, stays as it is. Whatever the cells x' are, q(z | x') is drawn to p(z | x'); resampling
only chooses on which cells it learns to be.

Source: Zhang, Hayes and Barber 2022, "Generalization gap in amortized inference", which trains
an encoder on draws of the model as a whole.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from scvi.model import SCVI
from scvi.module._constants import MODULE_KEYS
from torch import Tensor, nn

from scmixvi.core.modes import frozen
from scmixvi.singlecell._loops.counts import dense
from scmixvi.singlecell._training.plan import MixtureTrainingPlan

ENCODER_PARTS = (
    "z_encoder",
    "l_encoder",
    "component_offsets",
    "mixture_logits",
    "weight_encoder",
)
# Epochs by default, as a share of a whole training's.
REFINEMENT_SHARE = 0.25

_SPLIT_ARGUMENTS = {
    "datamodule",
    "external_indexing",
    "shuffle_set_split",
    "train_size",
    "validation_size",
}


class EncoderRefinement(MixtureTrainingPlan):
    """A training plan whose steps see resampled cells; validation sees cells as they are."""

    def on_train_epoch_start(self) -> None:
        """As in every training, with the modes that a callback may have changed set again."""
        super().on_train_epoch_start()
        _only_draw_in_training(self.module)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """As the step of every training, on resampled cells."""
        return super().training_step(resampled(self.module, batch), batch_idx)


@torch.no_grad()
def resampled(module: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The minibatch with a random share of every cell's counts drawn anew from the model.

    A cell that would be left without counts stays as it is.
    """
    counts = dense(tensors[REGISTRY_KEYS.X_KEY])
    tensors = {**tensors, REGISTRY_KEYS.X_KEY: counts}
    outputs = _drawn_once(module, module._get_inference_input(tensors))
    decoded = module.generative(**module._get_generative_input(tensors, outputs))
    drawn = decoded[MODULE_KEYS.PX_KEY].sample().to(counts.dtype)
    share = torch.rand(len(counts), 1, device=counts.device)
    mixed = torch.where(torch.rand_like(counts) < share, drawn, counts)
    empty = mixed.sum(1, keepdim=True) == 0
    return {**tensors, REGISTRY_KEYS.X_KEY: torch.where(empty, counts, mixed)}


def _drawn_once(module: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """What decodes one z of each cell; under "s2s" of the components that the step draws from."""
    if module.estimator != "s2s":
        return module.inference(**inputs)
    drawn = module.inference(**inputs, stratified=True)
    qz, library = drawn[MODULE_KEYS.QZ_KEY], drawn[MODULE_KEYS.LIBRARY_KEY]
    return module._outputs(qz, drawn[MODULE_KEYS.QL_KEY], library[0], qz.sample())


def _only_draw_in_training(module: nn.Module) -> None:
    """The module in training mode, so that it draws by its estimator, and no layer of it."""
    module.eval()
    module.training = True


@contextmanager
def encoders_alone(module: nn.Module) -> Iterator[None]:
    """Freeze all but the posterior's weights: no dropout, and batch norm keeps its statistics.

    The module itself is in training mode, in which it draws components as its estimator does.
    What was frozen before stays frozen.

    Raises
    ------
    ValueError
        If no weight of an encoder is left to train.
    """
    others, own = [], []
    for name, parameter in module.named_parameters():
        (own if name.startswith(ENCODER_PARTS) else others).append(parameter)
    # A query model trains its encoders' weights of new covariates alone, where they have any.
    partly = not all(p.requires_grad for p in own)
    if not any(p.requires_grad for p in own) or (partly and not module.encode_covariates):
        raise ValueError(
            "the encoder weights of this model are frozen, as load_query_data leaves them: there "
            "is nothing to refine. Refine the reference, or load the query with unfrozen=True."
        )
    _only_draw_in_training(module)
    try:
        with frozen(others), warnings.catch_warnings():
            # Lightning finds modules in evaluation mode, which is meant.
            warnings.filterwarnings("ignore", ".*in eval mode at the start of training")
            yield
    finally:
        module.eval()


def own_split(model: SCVI, arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `train` that repeat the model's split, unless they choose one.

    Held-out cells stay held out. A model without a split of these data gets a new one.
    """
    splitter = arguments.get("datasplitter_kwargs") or {}
    if _SPLIT_ARGUMENTS & (arguments.keys() | splitter.keys()):
        return arguments
    parts = [model.train_indices, model.validation_indices, model.test_indices]
    indices = [np.array([], int) if p is None else np.asarray(p) for p in parts]
    if model.adata is None or sum(map(len, indices)) != model.adata.n_obs:
        return arguments
    return {**arguments, "datasplitter_kwargs": {**splitter, "external_indexing": indices}}
