"""What a trainer wants to know of a network: what is trained, what its layers see, whether it is a chain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from client.trainer import trainable
from privacy.layers import keeps_book, known_layers
from twin.models.chain import hidden_layers
from twin.models.network import Network
from twin.tasks.protocol import Task

Chain = tuple[Network, tuple[str, ...]]
"""A model that is one (twin/models/chain.py), and its hidden layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """What is to be known of a network, looked up once.

    Attributes:
        trained: its parameters that are trained, by name.
        chain: itself with its hidden layers, if it is a chain.
        seen: numbers that its known layers see and give for a window.
    """

    trained: Mapping[str, nn.Parameter]
    chain: Chain | None
    seen: int

    @classmethod
    def of(cls, model: nn.Module) -> Anatomy:
        """A network's."""
        layers = [layer.get_parameter("weight") for layer in known_layers(model).values()]
        return cls(
            trained=trainable(model),
            chain=chain_of(model),
            seen=sum(weight[0].numel() + len(weight) for weight in layers),
        )

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(value.numel() for value in self.trained.values())


def chain_of(model: nn.Module) -> Chain | None:
    """The model with its hidden layers, if steps without privacy can be written out for it."""
    hidden = hidden_layers(model)
    if hidden is None or not isinstance(model, Network) or not _writes_gradient(model.task):
        return None
    return model, hidden


def _writes_gradient(task: Task) -> bool:
    """Whether the gradient that the task writes out is that of its loss.

    A task that somebody plugged in may leave it to autograd. One that is made of another may change the loss
    and keep what was written for the other's: then the loss stands in a class nearer to it, or in itself.
    """
    if not {"loss", "loss_gradient"}.isdisjoint(getattr(task, "__dict__", ())):
        return False
    written = ["loss_gradient" in vars(kind) for kind in type(task).__mro__]
    losses = ["loss" in vars(kind) for kind in type(task).__mro__]
    return True in written and True in losses and written.index(True) <= losses.index(True)


def can_stack(model: nn.Module) -> bool:
    """Whether sites with this model can be trained at once."""
    return keeps_book(model)
