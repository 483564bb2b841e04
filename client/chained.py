"""Steps of many sites' chains (twin/models/chain.py) with the gradient written out by hand.

What `privacy.stacked` does for any model of known layers, at a quarter of its time for small networks:
no graph is made, activations lie in memory that is taken once a round, and whitening is done once for all
steps. Without privacy only.

Letters: S sites, R rows (windows with padding) of a site in a step, F columns of the table, H hidden units,
D = F + H features, Q latents, N = S × R.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from twin.models.network import Network
from twin.tasks.protocol import Examples

_WIDEST: Final = 5.0
"""Where the table is clamped on its way into hidden layers (twin/models/mlp.py)."""


class ChainedStep:
    """Moves S sites' weights down their own gradients, in place."""

    def __init__(self, model: Network, hidden: tuple[str, ...], weights: Mapping[str, Tensor]) -> None:
        """Args:
        model: gives whitening and outputs, and is not changed.
        hidden: names of its hidden layers.
        weights: of all sites, (S, *shape) by name, each in one piece; they are what moves.
        """
        self._model, self._head_SQD = model, weights["head.weight"]
        self._layers = [_Layer(weights[f"{name}.weight"], weights[f"{name}.bias"]) for name in hidden]
        self._learnt_SQH = self._head_SQD[..., len(model.centre_F) :]
        self._minus_one = self._head_SQD.new_tensor(-1.0)
        self._rooms: dict[int, _Room] = {}

    def descend(self, part: Examples, weight_N: Tensor, rate: float) -> None:
        """One step down the gradient of the sum of loss × weight.

        Args:
            part: the step's windows, as many of each site, site after site; their tables are whitened.
        """
        room = self._room(len(part.table_NF) // len(self._head_SQD))
        table_SRF = part.table_NF.view(room.table_SRF.shape)
        room.table_SRF.copy_(table_SRF)
        seen = table_SRF.clamp(-_WIDEST, _WIDEST) if self._layers else table_SRF
        before = [seen]
        for layer, out_SRH in zip(self._layers, room.outs, strict=True):
            # tanh(x) is 2 sigmoid(2x) - 1, to 2e-7: torch's tanh takes five times as long.
            torch.baddbmm(layer.bias_S1H, before[-1], layer.weight_SIH, beta=2.0, alpha=2.0, out=out_SRH)
            torch.add(self._minus_one, out_SRH.sigmoid_(), alpha=2.0, out=out_SRH)
            before.append(out_SRH)
        if self._layers:
            room.learnt_SRH.copy_(before[-1])
        latents_NQ = torch.bmm(room.features_SRD, self._head_SQD.transpose(1, 2)).flatten(0, 1)
        change_SRQ = self._at_latents(latents_NQ, part, weight_N).view(*room.table_SRF.shape[:2], -1)
        if self._layers:
            self._backward(before, change_SRQ, room, rate)
        self._head_SQD.baddbmm_(change_SRQ.transpose(1, 2), room.features_SRD, alpha=-rate)

    def _at_latents(self, latents_NQ: Tensor, part: Examples, weight_N: Tensor) -> Tensor:
        """The gradient of the weighted loss at the head's outputs, N × Q."""
        outputs_NO = self._model.expand(latents_NQ)
        change_NO = self._model.task.loss_gradient(outputs_NO, part).mul_(weight_N[:, None])
        return self._model.contract(change_NO)

    def _backward(self, before: list[Tensor], change_SRQ: Tensor, room: _Room, rate: float) -> None:
        """Moves the hidden layers, last to first; each after the gradient went through it."""
        change_SRH = room.changes[-1]
        if change_SRQ.shape[2] == 1:
            torch.mul(change_SRQ, self._learnt_SQH, out=change_SRH)
        else:
            torch.bmm(change_SRQ, self._learnt_SQH, out=change_SRH)
        for number in reversed(range(len(self._layers))):
            layer, change_SRH = self._layers[number], room.changes[number]
            torch.ops.aten.tanh_backward.grad_input(change_SRH, before[number + 1], grad_input=change_SRH)
            if number:
                torch.bmm(change_SRH, layer.weight_SHI, out=room.changes[number - 1])
            layer.weight_SHI.baddbmm_(change_SRH.transpose(1, 2), before[number], alpha=-rate)
            layer.bias_S1H.baddbmm_(room.one_S1R, change_SRH, alpha=-rate)

    def _room(self, rows: int) -> _Room:
        """Scratch space for so many rows of each site; what it needs is taken once for the most rows."""
        if rows not in self._rooms:
            widths = [layer.weight_SHI.shape[1] for layer in self._layers]
            columns = self._head_SQD.shape[2] - self._learnt_SQH.shape[2]
            if self._rooms and rows < max(self._rooms):
                self._rooms[rows] = self._rooms[max(self._rooms)].narrower(rows)
            else:
                self._rooms = {rows: _Room.of(self._head_SQD, rows, columns, widths)}
        return self._rooms[rows]


class _Layer:
    """A hidden layer of all sites, and the ways in which products read it."""

    __slots__ = ("bias_S1H", "weight_SHI", "weight_SIH")

    def __init__(self, weight_SHI: Tensor, bias_SH: Tensor) -> None:
        self.weight_SHI, self.weight_SIH = weight_SHI, weight_SHI.transpose(1, 2)
        self.bias_S1H = bias_SH[:, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Room:
    """Scratch space of a step: features (the table, then what is learnt), layers' outputs and gradients."""

    features_SRD: Tensor
    table_SRF: Tensor
    learnt_SRH: Tensor
    outs: tuple[Tensor, ...]
    changes: tuple[Tensor, ...]
    one_S1R: Tensor

    @staticmethod
    def of(like_SQD: Tensor, rows: int, columns: int, widths: Sequence[int]) -> _Room:
        """Space taken anew."""
        sites, _, features = like_SQD.shape
        features_SRD = like_SQD.new_empty(sites, rows, features)
        return _Room(
            features_SRD=features_SRD,
            table_SRF=features_SRD[..., :columns],
            learnt_SRH=features_SRD[..., columns:],
            outs=tuple(like_SQD.new_empty(sites, rows, width) for width in widths),
            changes=tuple(like_SQD.new_empty(sites, rows, width) for width in widths),
            # In one piece: otherwise torch multiplies for one site after the other.
            one_S1R=like_SQD.new_ones(sites, 1, rows),
        )

    def narrower(self, rows: int) -> _Room:
        """The same memory for fewer rows."""
        sites, _, features = self.features_SRD.shape
        columns = self.table_SRF.shape[2]
        features_SRD = _fewer(self.features_SRD, sites, rows, features)
        return _Room(
            features_SRD=features_SRD,
            table_SRF=features_SRD[..., :columns],
            learnt_SRH=features_SRD[..., columns:],
            outs=tuple(_fewer(out, sites, rows, out.shape[2]) for out in self.outs),
            changes=tuple(_fewer(change, sites, rows, change.shape[2]) for change in self.changes),
            one_S1R=self.one_S1R.new_ones(sites, 1, rows),
        )


def _fewer(space: Tensor, *shape: int) -> Tensor:
    return space.view(-1)[: math.prod(shape)].view(shape)
