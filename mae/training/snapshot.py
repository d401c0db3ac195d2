"""A copy of what is on the device, as it is now, for something that takes longer to use it."""

import torch
from torch import Tensor

Tensors = dict[str, dict[str, Tensor]]
"""Group -> name -> tensor."""


class Snapshot:
    """Copies tensors to CPU memory that is used again for the next copy.

    From a GPU into pinned memory, all of them under way at once.
    """

    def __init__(self) -> None:
        self._buffers: Tensors = {}

    @torch.no_grad()
    def take(self, tensors: Tensors) -> Tensors:
        """Return contiguous copies; the next call writes over them."""
        buffers: Tensors = {}
        for group, members in tensors.items():
            known = self._buffers.get(group, {})
            buffers[group] = {
                name: _fitting(known.get(name), tensor).copy_(tensor, non_blocking=True)
                for name, tensor in members.items()
            }
        if any(tensor.is_cuda for members in tensors.values() for tensor in members.values()):
            torch.cuda.synchronize()
        self._buffers = buffers
        return buffers


def _fitting(buffer: Tensor | None, tensor: Tensor) -> Tensor:
    """Return `buffer` where it fits the tensor, else a new one on the CPU."""
    if buffer is not None and (buffer.shape, buffer.dtype) == (tensor.shape, tensor.dtype):
        return buffer
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
