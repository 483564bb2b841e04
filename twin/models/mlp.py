"""A residual multilayer perceptron: two hidden layers whose outputs join the linear model's features.

No normalisation over a batch, bounded activations: it trains under per-patient clipping.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from twin.models.network import Network
from twin.tasks.protocol import Examples, Task


class ResidualMLP(Network):
    """The linear model plus what two tanh layers of width `hidden` add to it."""

    def __init__(self, task: Task, hidden: int) -> None:
        super().__init__(task, learnt_features=hidden)
        self.first = nn.Linear(len(task.columns), hidden)
        self.second = nn.Linear(hidden, hidden)

    def features(self, examples: Examples) -> Tensor:
        """Whitened table and the last hidden layer, N × (F + hidden)."""
        table = self.whitened(examples)
        hidden = torch.tanh(self.second(torch.tanh(self.first(table.clamp(-5.0, 5.0)))))
        return torch.cat([table, hidden], dim=1)
