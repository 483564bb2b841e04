"""Many sites' layers as one: each site has its own weights, and all sites compute in one product.

`stack` gives a copy of a model in which each Linear and Conv1d layer holds the parameters of S sites
with a leading axis and multiplies in one batched product. Everything else of the model (whitening,
activations, the task's loss) works on windows one by one and stays as it is: the windows of all sites
stand on one leading axis, laid out as S sites × P patients × W windows, with padding where a site
has fewer patients or a patient fewer windows. Padding weighs zero.

`clipped_sums` is book-keeping (see clipping.py) over that layout: one backward pass to the outputs of
the layers, from which come each patient's norm and each site's sum of clipped gradients. Where a
patient is one row of a layer, the norm of the gradient is the product of two norms (it has rank
one); elsewhere the gradients of patients are made explicitly.

Letters: S sites, P patients, W windows of a patient, R rows of a patient at a layer (windows × time),
I inputs and O outputs of a layer.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from privacy.errors import PrivacyError
from privacy.layers import keeps_book, unfolded


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a layer: its inputs as rows, (S × P × W, steps, I), and where its gradient arrives."""

    inputs_NTI: Tensor
    edge: GradientEdge


class StackedLayer(nn.Module):
    """A Linear or Conv1d layer of S sites; `calls` is what it saw since it was last cleared."""

    def __init__(self, layer: nn.Linear | nn.Conv1d) -> None:
        super().__init__()
        self.layer = copy.deepcopy(layer).requires_grad_(requires_grad=False)
        self.trained = {name: p.requires_grad for name, p in layer.named_parameters()}
        self.weights: dict[str, Tensor] = {}
        self.records = False
        self.calls: list[Call] = []

    def forward(self, inputs: Tensor) -> Tensor:
        """What each site's own layer gives for that site's windows."""
        rows_NTI = self._rows(inputs)
        weight_SOI = self.weights["weight"].flatten(2)
        sites, outputs = weight_SOI.shape[:2]
        flat_SRI = rows_NTI.reshape(sites, -1, weight_SOI.shape[2])
        if "bias" in self.weights:
            bias_SO = self.weights["bias"]
            product_SRO = torch.baddbmm(bias_SO[:, None], flat_SRI, weight_SOI.transpose(1, 2))
        else:
            product_SRO = torch.bmm(flat_SRI, weight_SOI.transpose(1, 2))
        result_NTO = product_SRO.reshape(*rows_NTI.shape[:2], outputs)
        if self.records:
            if not result_NTO.requires_grad:
                result_NTO.requires_grad_()
            self.calls.append(Call(inputs_NTI=rows_NTI.detach(), edge=get_gradient_edge(result_NTO)))
        if isinstance(self.layer, nn.Conv1d):
            return result_NTO.transpose(1, 2)
        return result_NTO.reshape(*inputs.shape[:-1], outputs)

    def _rows(self, inputs: Tensor) -> Tensor:
        if isinstance(self.layer, nn.Conv1d):
            return unfolded(self.layer, inputs).flatten(2)
        return inputs.reshape(len(inputs), -1, inputs.shape[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """A model of many sites.

    Attributes:
        model: called like the one it was made from, with windows laid out as S × P × W.
        layers: its stacked layers by the name that they have in the model.
    """

    model: nn.Module
    layers: Mapping[str, StackedLayer]

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Gives the layers their parameters, (S, *shape) by the names that the model has for them."""
        for prefix, layer in self.layers.items():
            layer.weights = {
                name: weights[f"{prefix}.{name}".lstrip(".")] for name, _ in layer.layer.named_parameters()
            }

    def record(self, *, on: bool) -> None:
        """Begins, or ends, keeping book of what layers see."""
        for layer in self.layers.values():
            layer.records, layer.calls = on, []


def stack(model: nn.Module) -> Stack:
    """The model with layers that can hold many sites' parameters.

    Raises:
        PrivacyError: a trainable parameter belongs to another kind of layer.
    """
    if not keeps_book(model):
        raise PrivacyError("Only models whose trained layers are plain Linear and Conv1d can be stacked.")
    stacked = copy.deepcopy(model)
    layers = {}
    for name, layer in list(stacked.named_modules()):
        if isinstance(layer, (nn.Linear, nn.Conv1d)):
            layers[name] = StackedLayer(layer)
            parent, _, own = name.rpartition(".")
            setattr(stacked.get_submodule(parent), own, layers[name])
    return Stack(model=stacked, layers=layers)


def clipped_sums(
    stacked: Stack, total: Tensor, sites: int, patients: int, clip_norm: float
) -> dict[str, Tensor]:
    """Each site's sum over its patients of their clipped gradients, float64, (S, *shape) by parameter.

    Args:
        stacked: whose layers recorded the pass that gave `total`.
        total: sum over all windows of loss × weight; a patient's weights add up to one, padding has zero.
        sites, patients: S and P of the layout.
        clip_norm: most that one patient moves its site's sum, in L2, above 0.
    """
    calls = [(name, layer, call) for name, layer in stacked.layers.items() for call in layer.calls]
    found = torch.autograd.grad(total, [call.edge for _, _, call in calls], allow_unused=True)
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for (name, _, call), gradient in zip(calls, found, strict=True):
        if gradient is not None:
            shape = (sites, patients, -1)
            inputs_SPRI = call.inputs_NTI.reshape(*shape, call.inputs_NTI.shape[-1])
            pairs.setdefault(name, []).append((inputs_SPRI, gradient.reshape(*shape, gradient.shape[-1])))
    books = [_Book.of(name, stacked.layers[name], *_together(each)) for name, each in pairs.items()]
    norms_SP = torch.stack([book.squares() for book in books]).sum(0).sqrt()
    scale_SP = (clip_norm / norms_SP.clamp_min(torch.finfo(torch.float64).tiny)).clamp_max(1.0)
    # A patient whose gradient is not finite adds nothing, as in clipping.py.
    finite_SP = norms_SP.isfinite()
    scale_SP = torch.where(finite_SP, scale_SP, torch.zeros_like(scale_SP))
    kept = None if bool(finite_SP.all()) else finite_SP
    sums: dict[str, Tensor] = {}
    for book in books:
        sums |= book.sums(scale_SP.float(), kept)
    return sums


@dataclass(frozen=True, slots=True, kw_only=True)
class _Book:
    """A layer's record: rows of inputs and gradients by patient, explicit gradients where they are needed."""

    prefix: str
    shapes: Mapping[str, tuple[int, ...]]
    inputs_SPRI: Tensor
    gradients_SPRO: Tensor
    explicit_SPOI: Tensor | None
    bias_SPO: Tensor | None

    @classmethod
    def of(cls, name: str, layer: StackedLayer, inputs_SPRI: Tensor, gradients_SPRO: Tensor) -> _Book:
        shapes = {key: tuple(layer.weights[key].shape) for key, wanted in layer.trained.items() if wanted}
        explicit = None
        if "weight" in shapes and inputs_SPRI.shape[2] > 1:
            flat = torch.bmm(gradients_SPRO.flatten(0, 1).transpose(1, 2), inputs_SPRI.flatten(0, 1))
            explicit = flat.reshape(*inputs_SPRI.shape[:2], *flat.shape[1:])
        return cls(
            prefix=f"{name}." if name else "",
            shapes=shapes,
            inputs_SPRI=inputs_SPRI,
            gradients_SPRO=gradients_SPRO,
            explicit_SPOI=explicit,
            bias_SPO=gradients_SPRO.sum(2) if "bias" in shapes else None,
        )

    def squares(self) -> Tensor:
        """The squared norm of each patient's gradient for this layer, (S, P), float64."""
        squares_SP = torch.zeros(
            self.inputs_SPRI.shape[:2], dtype=torch.float64, device=self.inputs_SPRI.device
        )
        if self.explicit_SPOI is not None:
            squares_SP = _squares(self.explicit_SPOI)
        elif "weight" in self.shapes:
            squares_SP = _squares(self.inputs_SPRI) * _squares(self.gradients_SPRO)
        return squares_SP if self.bias_SPO is None else squares_SP + _squares(self.bias_SPO)

    def sums(self, scale_SP: Tensor, kept_SP: Tensor | None) -> dict[str, Tensor]:
        """Each site's sum of scaled gradients; `kept_SP` says whose are finite, None if all are."""
        named: dict[str, Tensor] = {}
        if self.bias_SPO is not None:
            bias_SPO = _only(self.bias_SPO, kept_SP)
            named["bias"] = torch.bmm(scale_SP[:, None], bias_SPO)[:, 0]
        if self.explicit_SPOI is not None:
            flat_SPX = _only(self.explicit_SPOI, kept_SP).flatten(2)
            named["weight"] = torch.bmm(scale_SP[:, None], flat_SPX)[:, 0]
        elif "weight" in self.shapes:
            scaled_SPO = _only(self.gradients_SPRO, kept_SP)[:, :, 0] * scale_SP[..., None]
            named["weight"] = torch.bmm(scaled_SPO.transpose(1, 2), _only(self.inputs_SPRI, kept_SP)[:, :, 0])
        return {
            f"{self.prefix}{key}": value.reshape(self.shapes[key]).double() for key, value in named.items()
        }


def _together(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Inputs and gradients of all calls of a layer, as more rows of the same patients."""
    if len(pairs) == 1:
        return pairs[0]
    return torch.cat([inputs for inputs, _ in pairs], 2), torch.cat([gradients for _, gradients in pairs], 2)


def _squares(values_SP: Tensor) -> Tensor:
    norms_SP: Tensor = torch.linalg.vector_norm(values_SP.flatten(2), dim=2, dtype=torch.float64)
    return norms_SP.square()


def _only(values_SP: Tensor, kept_SP: Tensor | None) -> Tensor:
    if kept_SP is None:
        return values_SP
    return torch.where(kept_SP.reshape(*kept_SP.shape, *[1] * (values_SP.ndim - 2)), values_SP, 0.0)
