"""What every model shares: whitened inputs, a linear last layer, a fixed public basis of outputs.

Whitening and basis come from public data (`twin.prior`), are buffers, travel with the model and are
never trained. In whitened coordinates plain private gradient steps converge in tens of rounds.

Letters: N windows, F columns of the task's table, D features, Q latents, O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from twin.tasks.protocol import Examples, Task


class Network(nn.Module):
    """The linear model: outputs = basis (head (features)) + offset. Others add features to it.

    Attributes:
        head: the last layer, D → Q, no bias (the table's last column is one).
    """

    # Whether the network needs the history, or the table alone.
    reads_series = False

    centre_F: Tensor
    whitening_FF: Tensor
    basis_OQ: Tensor
    offset_O: Tensor

    def __init__(self, task: Task, learnt_features: int = 0) -> None:
        super().__init__()
        columns = len(task.columns)
        self.task = task
        self.head = nn.Linear(columns + learnt_features, task.latents, bias=False)
        nn.init.zeros_(self.head.weight)
        self.register_buffer("centre_F", torch.zeros(columns))
        self.register_buffer("whitening_FF", torch.eye(columns))
        self.register_buffer("basis_OQ", torch.eye(task.outputs, task.latents))
        self.register_buffer("offset_O", torch.zeros(task.outputs))

    def whitened(self, examples: Examples) -> Tensor:
        """The task's table in coordinates in which public data has unit covariance, N × F."""
        return (examples.table_NF - self.centre_F) @ self.whitening_FF

    def features(self, examples: Examples) -> Tensor:
        """What the last layer sees, N × D."""
        return self.whitened(examples)

    def expand(self, latents_NQ: Tensor) -> Tensor:
        """Outputs of the task from outputs of the last layer, N × O."""
        return latents_NQ @ self.basis_OQ.T + self.offset_O

    def contract(self, change_NO: Tensor) -> Tensor:
        """A gradient at the outputs of the last layer, N × Q, from one at the outputs of the task."""
        return change_NO @ self.basis_OQ

    def forward(self, examples: Examples) -> Tensor:
        """Outputs of the task, N × O."""
        return self.expand(self.head(self.features(examples)))
