"""What is learned: the part of a training run that the loop does not know."""

from typing import Any

from torch import Tensor, nn

from mae.training.groups import decay_groups


class Task(nn.Module):
    """Turns a batch into a loss, and says which parameters learn at which rate.

    The modules it holds are what is trained, wrapped for distribution and checkpointed.
    """

    def forward(self, batch: Any, epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, a float32 scalar averaged over the batch, and scalars to journal."""
        raise NotImplementedError

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return optimiser groups {params, weight_decay, lr_scale}; all parameters by default."""
        return decay_groups(self, weight_decay)
