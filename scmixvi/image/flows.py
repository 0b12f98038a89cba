"""Normalizing flows for a stage of the posterior: one shared by all components, or one each.

Eq. 7 of the paper scores component j at T_j(z_s), another point than the sample T_s(z_s). That is
a density only if all components share one bijection, as :class:`InverseAutoregressiveFlow` does.
Bijections that differ, as :class:`AffineCoupling`, are scored at the drawn point through their
inverses.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from pyro.nn import AutoRegressiveNN
from torch import Tensor, nn

from scmixvi._messages import check_whole, is_whole
from scmixvi.image._checks import check_layers
from scmixvi.image.nets import linear, mlp

GATE_SHIFT = 2.0  # sigmoid(2) = 0.88: a flow starts near the identity


class InverseAutoregressiveFlow(nn.Module):
    r"""T steps of gated averaging, one bijection for all components.

    .. math:: z \leftarrow \sigma(s(z)) z + (1 - \sigma(s(z))) m(z)

    s and m are autoregressive networks (MADE); the order of the dimensions turns around at every
    step. Forwards is one pass a step, backwards D passes a step.

    Parameters
    ----------
    n_latent
        D, at least 2.
    n_steps
        T.
    n_hidden
        Units of each hidden layer of a MADE, each at least D; at least one layer.

    Raises
    ------
    ValueError
        If D is no whole number of at least 2, T none of at least 1, there is no hidden layer, or
        one is narrower than D.

    References
    ----------
    Kingma et al. 2016, "Improved variational inference with inverse autoregressive flow".
    """

    shared = True

    def __init__(
        self, n_latent: int, n_steps: int = 2, n_hidden: Sequence[int] = (320, 320)
    ) -> None:
        super().__init__()
        _check_sizes(n_latent, n_steps, n_hidden)
        if min(n_hidden) < n_latent:
            raise ValueError(
                f"n_hidden of an inverse autoregressive flow must be at least D = {n_latent} in "
                f"every layer, but it is {tuple(n_hidden)}."
            )
        self.n_latent = n_latent
        order = torch.arange(n_latent)
        both = [cast(torch.LongTensor, each) for each in (order, order.flip(0))]
        self.nets = nn.ModuleList(
            AutoRegressiveNN(n_latent, list(n_hidden), permutation=both[step % 2])
            for step in range(n_steps)
        )

    def forward(self, z0: Tensor) -> tuple[Tensor, Tensor]:
        """Map `[..., D]` to z and log|det dz/dz0| `[...]`."""
        z, log_det = z0, torch.zeros_like(z0[..., 0])
        for net in self.nets:
            mean, gate = self._mean_and_gate(net, z)
            z = torch.lerp(mean, z, gate.sigmoid())
            log_det = log_det + F.logsigmoid(gate).sum(-1)
        return z, log_det

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Map `[..., D]` back to z0, and log|det dz/dz0| `[...]` there."""
        for net in reversed(self.nets):
            z = self._inverse_step(net, z)
        return z, self(z)[1]

    @staticmethod
    def _mean_and_gate(net: nn.Module, z: Tensor) -> tuple[Tensor, Tensor]:
        """M and s of a step, in the precision of z."""
        mean, gate = net(z)
        return mean.to(z.dtype), gate.to(z.dtype) + GATE_SHIFT

    def _inverse_step(self, net: nn.Module, z: Tensor) -> Tensor:
        """Solve for one dimension after the other, in the order of `net`."""
        z0 = torch.zeros_like(z)
        for chosen in F.one_hot(net.get_buffer("permutation")).bool():
            mean, gate = self._mean_and_gate(net, z0)
            solved = mean + (z - mean) / gate.sigmoid()
            z0 = torch.where(chosen, solved, z0)
        return z0


class AffineCoupling(nn.Module):
    r"""T affine coupling steps, with weights of its own for each component.

    A half (a, b) of the dimensions at a time: :math:`b \leftarrow b \exp(c(a)) + t(a)`; the halves
    take turns. Both directions are one pass, so the exact density of a sample under every other
    component costs S x S passes.

    Parameters
    ----------
    n_latent
        D, at least 2.
    n_components
        S.
    n_steps
        T.
    n_hidden
        Units of each hidden layer; at least one.

    Raises
    ------
    ValueError
        If D is no whole number of at least 2, S or T none of at least 1, or there is no hidden
        layer.

    References
    ----------
    Dinh et al. 2017, "Density estimation using Real NVP".
    """

    shared = False

    def __init__(
        self,
        n_latent: int,
        n_components: int,
        n_steps: int = 2,
        n_hidden: Sequence[int] = (320, 320),
    ) -> None:
        super().__init__()
        check_whole("n_components (S) of a flow", n_components)
        _check_sizes(n_latent, n_steps, n_hidden)
        self.n_latent, self.n_components = n_latent, n_components
        front = n_latent // 2
        widths = [(front, n_latent - front), (n_latent - front, front)]
        self.front, self.nets = front, nn.ModuleList()
        for step in range(n_steps):
            n_in, n_out = widths[step % 2]
            hidden = mlp([n_in, *n_hidden], gated=False, n_components=n_components)
            self.nets.append(hidden.append(linear(n_hidden[-1], 2 * n_out, n_components)))

    def forward(self, z0: Tensor) -> tuple[Tensor, Tensor]:
        """Map `[L, S, B, D]`, each by its own component, to z and log|det dz/dz0| `[L, S, B]`."""
        rows = z0.transpose(0, 1).flatten(1, 2)
        log_det = rows.new_zeros(())
        for step, net in enumerate(self.nets):
            rows, change = self._step(net, rows, step, forward=True)
            log_det = log_det + change
        unflat = [t.unflatten(1, z0.shape[::2][:2]).transpose(0, 1) for t in (rows, log_det)]
        return unflat[0], unflat[1]

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Map `[L, S, 1, B, D]` back by every component: z0 `[L, S, S, B, D]`, log|det dz/dz0|."""
        sizes = (*z.shape[:2], z.shape[3])
        rows, log_det = z.flatten(0, 3), z.new_zeros(())
        for step, net in reversed(list(enumerate(self.nets))):
            rows, change = self._step(net, rows, step, forward=False)
            log_det = log_det + change
        unflat = [t.unflatten(1, sizes).movedim(0, 2) for t in (rows, log_det)]
        return unflat[0], unflat[1]

    def _step(
        self, net: nn.Module, rows: Tensor, step: int, forward: bool
    ) -> tuple[Tensor, Tensor]:
        """One coupling of `[S or none, N, D]`, with its log|det dz/dz0| `[S, N]`."""
        front, back = rows.tensor_split([self.front], dim=-1)
        kept, moved = (front, back) if step % 2 == 0 else (back, front)
        shift, raw = net(kept).to(rows.dtype).chunk(2, dim=-1)
        log_scale = 2 * torch.tanh(raw / 2)
        moved = moved * log_scale.exp() + shift if forward else (moved - shift) / log_scale.exp()
        kept = kept.expand(*moved.shape[:-1], kept.shape[-1])
        halves = (kept, moved) if step % 2 == 0 else (moved, kept)
        return torch.cat(halves, dim=-1), log_scale.sum(-1)


def _check_sizes(n_latent: int, n_steps: int, n_hidden: Sequence[int]) -> None:
    if not is_whole(n_latent, least=2):
        raise ValueError(
            "a flow needs at least 2 latent dimensions to mix, a whole number, but D is "
            f"{n_latent!r}."
        )
    check_whole("n_steps (T) of a flow", n_steps)
    check_layers("n_hidden of a flow", n_hidden)
