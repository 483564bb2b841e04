"""Steps of many sites' chains (twin/models/chain.py) with the gradient written out by hand.

What `privacy.stacked` does for any model of known layers, at a quarter of its time for small networks:
no graph is made, activations lie in memory that is taken once a round, and whitening is done once for all
steps. Without privacy only.

Letters: S sites, R rows (windows with padding) of a site in a step, F columns of the table, H hidden units,
D = F + H features, Q latents, N = S × R.
"""

from __future__ import annotations

from collections.abc import Mapping
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
        self._layers = [(weights[f"{name}.weight"], weights[f"{name}.bias"][:, None]) for name in hidden]
        self._room: dict[str, Tensor] = {}

    def descend(self, part: Examples, weight_N: Tensor, rate: float) -> None:
        """One step down the gradient of the sum of loss × weight.

        Args:
            part: the step's windows, as many of each site, site after site; their tables are whitened.
        """
        table_NF = part.table_NF
        sites, _, features = self._head_SQD.shape
        rows, columns = len(table_NF) // sites, table_NF.shape[1]
        features_SRD = self._taken("features", sites, rows, features)
        features_SRD[..., :columns] = table_NF.view(sites, rows, columns)
        seen = self._forward(features_SRD, table_NF.clamp(-_WIDEST, _WIDEST).view(sites, rows, columns))
        latents_SRQ = torch.bmm(features_SRD, self._head_SQD.transpose(1, 2))
        change_SRQ = self._at_latents(latents_SRQ, part, weight_N)
        if self._layers:
            self._backward(seen, change_SRQ, self._head_SQD[..., columns:], rate)
        self._head_SQD.baddbmm_(change_SRQ.transpose(1, 2), features_SRD, alpha=-rate)

    def _forward(self, features_SRD: Tensor, inputs_SRF: Tensor) -> list[Tensor]:
        """What each hidden layer saw, and what the last one gave, which becomes part of the features."""
        seen, (sites, rows, columns) = [inputs_SRF], inputs_SRF.shape
        for number, (weight_SHI, bias_S1H) in enumerate(self._layers):
            out_SRH = self._taken(f"layer {number}", sites, rows, weight_SHI.shape[1])
            torch.baddbmm(bias_S1H, seen[-1], weight_SHI.transpose(1, 2), out=out_SRH)
            # tanh as a sigmoid, to 2e-7: torch's tanh takes five times as long.
            out_SRH.mul_(2.0).sigmoid_().mul_(2.0).sub_(1.0)
            seen.append(out_SRH)
        if self._layers:
            features_SRD[..., columns:] = seen[-1]
        return seen

    def _at_latents(self, latents_SRQ: Tensor, part: Examples, weight_N: Tensor) -> Tensor:
        """The gradient of the weighted loss at the head's outputs."""
        outputs_NO = self._model.expand(latents_SRQ.flatten(0, 1))
        change_NO = self._model.task.loss_gradient(outputs_NO, part).mul_(weight_N[:, None])
        return self._model.contract(change_NO).view(latents_SRQ.shape)

    def _backward(self, seen: list[Tensor], change_SRQ: Tensor, head_SQH: Tensor, rate: float) -> None:
        """Moves the hidden layers, last to first; each after the gradient went through it."""
        sites, rows = change_SRQ.shape[:2]
        change_SRH = self._taken("change", sites, rows, head_SQH.shape[2])
        if change_SRQ.shape[2] == 1:
            torch.mul(change_SRQ, head_SQH, out=change_SRH)
        else:
            torch.bmm(change_SRQ, head_SQH, out=change_SRH)
        # In one piece: otherwise torch multiplies for one site after the other.
        one_S1R = change_SRH.new_ones(sites, 1, rows)
        for number in reversed(range(len(self._layers))):
            weight_SHI, bias_S1H = self._layers[number]
            torch.ops.aten.tanh_backward.grad_input(change_SRH, seen[number + 1], grad_input=change_SRH)
            before_SRI = change_SRH
            if number:
                before_SRI = self._taken(f"change {number}", sites, rows, weight_SHI.shape[2])
                torch.bmm(change_SRH, weight_SHI, out=before_SRI)
            weight_SHI.baddbmm_(change_SRH.transpose(1, 2), seen[number], alpha=-rate)
            bias_S1H.baddbmm_(one_S1R, change_SRH, alpha=-rate)
            change_SRH = before_SRI

    def _taken(self, name: str, sites: int, rows: int, width: int) -> Tensor:
        """Memory of that shape under a name, kept for the next step."""
        size = sites * rows * width
        if name not in self._room or self._room[name].numel() < size:
            self._room[name] = self._head_SQD.new_empty(size + size // 8)
        return self._room[name][:size].view(sites, rows, width)
