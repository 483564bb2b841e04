"""What book-keeping records of a model's layers, and the gradients of patients made from it.

Known layers are nn.Linear (with any middle axes, e.g. time) and nn.Conv1d (zero padding, one
group), exactly these types: a subclass or a parametrised layer may compute something else. The
gradient of a patient for such a layer is the product of the gradients at its outputs with its
inputs, summed over the patient's windows and time.

Shapes: N windows ordered by patient, K patients of a chunk, S steps on shared axes (time), I inputs and
O outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional
from torch.utils.hooks import RemovableHandle


class NotBookkeepable(Exception):
    """Why what was recorded does not tell patients apart; caught inside privacy, never seen outside."""


def keeps_book(model: nn.Module) -> bool:
    """Whether every trainable parameter belongs to exactly one layer of a known kind."""
    owners = [p for _, p in model.named_parameters(remove_duplicate=False) if p.requires_grad]
    known = {id(p) for layer in _known_layers(model).values() for p in layer.parameters(recurse=False)}
    return len({id(p) for p in owners}) == len(owners) and all(id(p) in known for p in owners)


_SMALL: Final = 2**16
"""Patients whose inputs are fewer numbers than this go into one batched product; above it, one after
the other stays in the processor's cache and is faster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRecord:
    """One layer over all its calls, windows ordered by patient.

    Attributes:
        inputs_NSI: what the layer saw; for a convolution a view of four axes, (N, S, channels, taps).
        gradients_NSO: of the total at the layer's outputs, the weights of windows included.
    """

    prefix: str
    layer: nn.Module
    inputs_NSI: Tensor
    gradients_NSO: Tensor

    def patients(self, start: int, counts_K: list[int]) -> dict[str, Tensor]:
        """Gradients of K consecutive patients for the layer's trainable parameters."""
        if len(set(counts_K)) == 1 and counts_K[0] * self.inputs_NSI[0].numel() < _SMALL:
            return self._alike(start, len(counts_K), counts_K[0])
        parts = []
        for count in counts_K:
            parts.append(self._alike(start, 1, count))
            start += count
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _alike(self, start: int, patients: int, count: int) -> dict[str, Tensor]:
        """The same for patients of equally many windows: one batched product."""
        rows = slice(start, start + patients * count)
        gradients = self.gradients_NSO[rows].reshape(patients, -1, self.gradients_NSO.shape[-1])
        named: dict[str, Tensor] = {}
        weight = self.layer.get_parameter("weight")
        if weight.requires_grad:
            inputs = self.inputs_NSI[rows].reshape(*gradients.shape[:2], -1)
            product_KOI = torch.bmm(gradients.transpose(1, 2), inputs)
            named[f"{self.prefix}weight"] = product_KOI.reshape(patients, *weight.shape)
        if self.layer.bias is not None and self.layer.get_parameter("bias").requires_grad:
            named[f"{self.prefix}bias"] = gradients.sum(1)
        return named


@dataclass(frozen=True, slots=True, kw_only=True)
class Book:
    """The records of one forward pass; layers that were not called have gradient zero."""

    records: tuple[LayerRecord, ...]
    idle: dict[str, Tensor]

    def gradients(self, start: int, counts_K: list[int]) -> dict[str, Tensor]:
        """Explicit gradients of K consecutive patients: of how many windows each, from window `start`."""
        named = {name: value.new_zeros(len(counts_K), *value.shape) for name, value in self.idle.items()}
        for record in self.records:
            named.update(record.patients(start, counts_K))
        return named


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    name: str
    inputs: Tensor
    version: int
    edge: GradientEdge


class Recorder:
    """Context manager: records inputs and outputs of the known layers while the model runs."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._layers = _known_layers(model)
        self._calls: list[_Call] = []
        self._by_keyword: list[str] = []
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        for name, layer in self._layers.items():
            self._handles.append(layer.register_forward_hook(self._hook(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def record(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if not inputs:
                self._by_keyword.append(name)
            elif output.requires_grad:
                # The edge outlives in-place activations, the tensor itself would change under them.
                edge, taken = get_gradient_edge(output), inputs[0].detach()
                self._calls.append(_Call(name=name, inputs=taken, version=taken._version, edge=edge))

        return record

    def book(self, total: Tensor, order_N: Tensor) -> Book:
        """What gradients of patients are made from, by one backward pass of `total`.

        Args:
            total: the weighted sum of the losses of all windows.
            order_N: the windows ordered by patient.

        Raises:
            NotBookkeepable: a layer's first axis is not surely the windows, or an input was
                overwritten, or the loss does not depend on any layer.
        """
        if self._by_keyword:
            raise NotBookkeepable(f"Layer {self._by_keyword[0]} is called with keywords only.")
        for call in self._calls:
            self._check(call, len(order_N))
        edges = [call.edge for call in self._calls]
        if not edges or not total.requires_grad:
            raise NotBookkeepable("The loss does not depend on any Linear or Conv1d layer that was called.")
        gradients = torch.autograd.grad(total, edges, allow_unused=True)
        pairs: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for call, gradient in zip(self._calls, gradients, strict=True):
            if gradient is not None:
                pairs.setdefault(call.name, []).append(
                    _shared(self._layers[call.name], call.inputs, gradient)
                )
        ordered = bool((order_N.diff() == 1).all())
        records = tuple(
            self._record(name, found, None if ordered else order_N) for name, found in pairs.items()
        )
        owned = {f"{name}.{kind}".lstrip(".") for name in pairs for kind in ("weight", "bias")}
        idle: dict[str, Tensor] = {
            name: p for name, p in self._model.named_parameters() if p.requires_grad and name not in owned
        }
        return Book(records=records, idle=idle)

    def _check(self, call: _Call, windows: int) -> None:
        shape, layer = call.inputs.shape, self._layers[call.name]
        middle = shape[1:-1] if isinstance(layer, nn.Linear) else ()
        if len(shape) < 2 or (isinstance(layer, nn.Conv1d) and len(shape) != 3) or shape[0] != windows:
            raise NotBookkeepable(
                f"The input of layer {call.name} does not have the windows as its first axis."
            )
        if windows in middle:
            # Time first and windows first look the same here; guessing wrong would mix patients.
            raise NotBookkeepable(
                f"The input of layer {call.name} has two axes as long as there are windows."
            )
        if call.inputs._version != call.version:
            raise NotBookkeepable(f"The input of layer {call.name} was overwritten in place.")

    def _record(self, name: str, pairs: list[tuple[Tensor, Tensor]], order_N: Tensor | None) -> LayerRecord:
        inputs, gradients = pairs[0]
        if len(pairs) > 1:
            inputs = torch.cat([pair[0] for pair in pairs], dim=1)
            gradients = torch.cat([pair[1] for pair in pairs], dim=1)
        if order_N is not None:
            inputs, gradients = inputs[order_N], gradients[order_N]
        prefix = f"{name}." if name else ""
        return LayerRecord(
            prefix=prefix, layer=self._layers[name], inputs_NSI=inputs, gradients_NSO=gradients
        )


def _known_layers(model: nn.Module) -> dict[str, nn.Module]:
    return {name: layer for name, layer in model.named_modules() if _is_known(layer)}


def _is_known(layer: nn.Module) -> bool:
    if type(layer) is nn.Linear:
        return True
    return type(layer) is nn.Conv1d and layer.groups == 1 and layer.padding_mode == "zeros"


def _shared(layer: nn.Module, inputs: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs and gradients of a layer with all shared axes as one: (N, S, I…), (N, S, O)."""
    if isinstance(layer, nn.Conv1d):
        return unfolded(layer, inputs), gradients.transpose(1, 2)
    count = len(inputs)
    return inputs.reshape(count, -1, inputs.shape[-1]), gradients.reshape(count, -1, gradients.shape[-1])


def unfolded(layer: nn.Conv1d, inputs_NCT: Tensor) -> Tensor:
    """What the kernel sees at every output step, a view of (N, S, channels, taps)."""
    dilation = layer.dilation[0]
    reach = dilation * (layer.kernel_size[0] - 1)
    if layer.padding == "same":
        inputs_NCT = functional.pad(inputs_NCT, (reach // 2, reach - reach // 2))
    elif not isinstance(layer.padding, str) and layer.padding[0]:
        inputs_NCT = functional.pad(inputs_NCT, (layer.padding[0], layer.padding[0]))
    seen_NCSK = inputs_NCT.unfold(2, reach + 1, layer.stride[0])[..., ::dilation]
    return seen_NCSK.transpose(1, 2)
