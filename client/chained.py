"""Steps of many sites' chains (twin/models/chain.py) with the gradient written out by hand.

What `privacy.stacked` does for any model of known layers, at a fraction of its time for small networks:
no graph is made, weights and activations lie in memory that is kept between rounds, whitening is done once
for all steps, and on a processor the products are numpy's, whose library has better kernels for matrices as
small as these than torch's. Activations stand as units × rows, which is how these kernels are fastest.
Without privacy only.

Letters: S sites, R rows (windows with padding) of a site in a step, F columns of the table, H hidden units,
I inputs of a layer, D = F + H features, Q latents, N = S × R.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import torch
from torch import Tensor

from twin.models.network import Network
from twin.tasks.protocol import Examples

_WIDEST: Final = 5.0
"""Where the table is clamped on its way into hidden layers (twin/models/mlp.py)."""

_through_tanh = torch.ops.aten.tanh_backward.grad_input
Call = Callable[[], object]
"""What is done with memory that stays where it is."""


class Bench:
    """Weights of S sites, and all the memory that it takes to move them down their own gradients.

    Attributes:
        model: gives whitening and outputs, and is not changed.
    """

    def __init__(
        self, model: Network, hidden: tuple[str, ...], trained: Mapping[str, Tensor], sites: int
    ) -> None:
        """Args:
        hidden: names of the model's hidden layers.
        trained: the model's parameters by name, whose order the weights keep.
        """
        self.model = model
        self._weights = {
            name: torch.empty(sites, *value.shape, dtype=value.dtype, device=value.device)
            for name, value in trained.items()
        }
        self._head_SQD = self._weights["head.weight"]
        self._layers = [(self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]) for name in hidden]
        self._spaces: dict[str, Tensor] = {}
        self._rooms: dict[int, _Room] = {}

    def begin(self, start: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The weights of all sites, (S, *shape) by name, as they stand at the start; `descend` moves them."""
        for name, weight in self._weights.items():
            weight.copy_(start[name])
        return self._weights

    def descend(self, part: Examples, weight_N: Tensor, rate: float) -> None:
        """One step down the gradient of the sum of loss × weight.

        Args:
            part: the step's windows, as many of each site, site after site; their tables are whitened.
        """
        sites, latents, _ = self._head_SQD.shape
        room = self._room(len(part.table_NF) // sites)
        room.table_SFR.copy_(part.table_NF.view(sites, room.rows, -1).transpose(1, 2))
        if room.layers:
            torch.clamp(room.table_SFR, -_WIDEST, _WIDEST, out=room.seen_SFR)
        for layer in room.layers:
            layer.multiply()
            layer.out_SHR.add_(layer.bias_SH1)
            layer.bend()
        room.head()
        change_NQ = self._at_latents(room.latents_SRQ.reshape(-1, latents), part, weight_N)
        room.change_SRQ.copy_(change_NQ.view(sites, room.rows, latents))
        room.back()
        for layer in reversed(room.layers):
            layer.descend(rate)
        room.head_gradient()
        self._head_SQD.sub_(room.gradient_SQD, alpha=rate)

    def _at_latents(self, latents_NQ: Tensor, part: Examples, weight_N: Tensor) -> Tensor:
        """The gradient of the weighted loss at the head's outputs, N × Q."""
        outputs_NO = self.model.expand(latents_NQ)
        change_NO = self.model.task.loss_gradient(outputs_NO, part).mul_(weight_N[:, None])
        return self.model.contract(change_NO)

    def _room(self, rows: int) -> _Room:
        """Where a step with so many rows of each site takes place."""
        if rows not in self._rooms:
            if rows > max(self._rooms, default=0):  # their memory does for fewer rows, and not for more
                self._rooms, self._spaces = {}, {}
            self._rooms[rows] = self._furnished(rows)
        return self._rooms[rows]

    def _furnished(self, rows: int) -> _Room:
        sites, latents, features = self._head_SQD.shape
        columns = len(self.model.centre_F)
        features_SDR = self._space("features", sites, features, rows)
        seen_SFR = self._space("seen", sites, columns, rows)
        change_SQR = self._space("change", sites, latents, rows)
        gradient_SQD = self._space("head", *self._head_SQD.shape)
        layers: list[_Layer] = []
        for number, (weight_SHI, bias_SH) in enumerate(self._layers):
            last = number == len(self._layers) - 1
            shape = sites, weight_SHI.shape[1], rows
            layers.append(
                _Layer(
                    weight_SHI=weight_SHI,
                    bias_SH=bias_SH,
                    into_SIR=layers[-1].out_SHR if layers else seen_SFR,
                    # The last one's is what the head sees of it.
                    out_SHR=features_SDR[:, columns:] if last else self._space(f"out {number}", *shape),
                    change_SHR=self._space(f"change {number}", *shape),
                    gradient_SHI=self._space("gradient", *weight_SHI.shape),
                    below_SIR=layers[-1].change_SHR if layers else None,
                )
            )
        latents_SQR = self._space("latents", sites, latents, rows)
        learnt_SHQ = self._head_SQD[..., columns:].transpose(1, 2)
        return _Room(
            rows=rows,
            table_SFR=features_SDR[:, :columns],
            seen_SFR=seen_SFR,
            latents_SRQ=latents_SQR.transpose(1, 2),
            change_SRQ=change_SQR.transpose(1, 2),
            gradient_SQD=gradient_SQD,
            layers=layers,
            head=_product(self._head_SQD, features_SDR, latents_SQR),
            back=_product(learnt_SHQ, change_SQR, layers[-1].change_SHR) if layers else _nothing,
            head_gradient=_product(change_SQR, features_SDR.transpose(1, 2), gradient_SQD),
        )

    def _space(self, name: str, *shape: int) -> Tensor:
        """Scratch space; that of a name is the same memory for all who ask."""
        numbers = math.prod(shape)
        if name not in self._spaces or len(self._spaces[name]) < numbers:
            self._spaces[name] = self._head_SQD.new_empty(numbers)
        return self._spaces[name][:numbers].view(shape)


class _Layer:
    """A hidden layer of all sites in a room: its weights, what goes in and comes out, and gradients there."""

    __slots__ = (
        "_below",
        "_gradient",
        "_gradient_SHI",
        "_weight_SHI",
        "bend",
        "bias_SH1",
        "change_SHR",
        "multiply",
        "out_SHR",
    )

    def __init__(
        self,
        *,
        weight_SHI: Tensor,
        bias_SH: Tensor,
        into_SIR: Tensor,
        out_SHR: Tensor,
        change_SHR: Tensor,
        gradient_SHI: Tensor,
        below_SIR: Tensor | None,
    ) -> None:
        """Args:
        change_SHR: for the gradient at its outputs.
        gradient_SHI: for that at its weights.
        below_SIR: for that at its inputs; None if nobody needs it.
        """
        self._weight_SHI, self.bias_SH1, self.out_SHR = weight_SHI, bias_SH[:, :, None], out_SHR
        self.change_SHR, self._gradient_SHI = change_SHR, gradient_SHI
        self.multiply = _product(weight_SHI, into_SIR, out_SHR)
        self.bend = _bending(out_SHR)
        self._gradient = _product(change_SHR, into_SIR.transpose(1, 2), gradient_SHI)
        self._below = (
            _nothing if below_SIR is None else _product(weight_SHI.transpose(1, 2), change_SHR, below_SIR)
        )

    def descend(self, rate: float) -> None:
        """Sends the gradient through to its inputs, then moves its weights."""
        _through_tanh(self.change_SHR, self.out_SHR, grad_input=self.change_SHR)
        self._below()
        self._gradient()
        self._weight_SHI.sub_(self._gradient_SHI, alpha=rate)
        self.bias_SH1.sub_(self.change_SHR.sum(2, keepdim=True), alpha=rate)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Room:
    """Where a step with so many rows takes place: memory, and what is done there in turn.

    Attributes:
        head: from features (the table, then what is learnt) to latents.
        back: from the gradient at the latents to that at what is learnt.
        head_gradient: from the gradient at the latents to that at the head's weights.
    """

    rows: int
    table_SFR: Tensor
    seen_SFR: Tensor
    latents_SRQ: Tensor
    change_SRQ: Tensor
    gradient_SQD: Tensor
    layers: list[_Layer]
    head: Call
    back: Call
    head_gradient: Call


def _product(left: Tensor, right: Tensor, out: Tensor) -> Call:
    """Multiplies two stacks of matrices whose memory stays where it is."""
    if out.device.type == "cpu":
        return partial(np.matmul, left.numpy(), right.numpy(), out=out.numpy())
    return partial(torch.bmm, left, right, out=out)


def _bending(values: Tensor) -> Call:
    """Puts tanh in place of values; numpy's takes a tenth of the time of torch's."""
    if values.device.type == "cpu":
        return partial(np.tanh, values.numpy(), out=values.numpy())
    return values.tanh_


def _nothing() -> None:
    pass
