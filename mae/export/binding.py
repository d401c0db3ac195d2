"""Batches through buffers that stay on the device: no allocation and no detour for each of them."""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Sets of buffers that are kept, one for each shape of a batch and choice of outputs.
_KEPT = 16

# onnxruntime's mark for a run that no CUDA graph is recorded of.
_NOT_RECORDED = "-1"


@dataclass(frozen=True)
class _Buffers:
    """What one shape of batch is run with. staging: on the host, pinned where that can be."""

    staging: NDArray
    images: Any
    binding: Any
    values: dict[str, Any]
    options: Any


class BoundRunner:
    """Runs a session with inputs and outputs bound to memory of `device` ("cuda" or "cpu").

    Calls from several threads take turns: they share the buffers, and the device.
    """

    def __init__(self, session: Any, device: str, *, cuda_graph: bool = False) -> None:
        self._session = session
        self._device = device
        self._cuda_graph = cuda_graph
        self._kept: OrderedDict[tuple[tuple[int, ...], tuple[str, ...]], _Buffers] = OrderedDict()
        self._recorded = 0
        self._lock = threading.Lock()

    def __call__(
        self, name: str, images: NDArray, outputs: tuple[str, ...]
    ) -> dict[str, NDArray[np.float32]]:
        """Return the outputs for `images`, the input called `name`, in memory of the caller's."""
        with self._lock:
            buffers = self._buffers(name, images, outputs)
            np.copyto(buffers.staging, images)
            buffers.images.update_inplace(buffers.staging)
            self._session.run_with_iobinding(buffers.binding, buffers.options)
            # On the CPU numpy() is a view of the buffer, which the next batch overwrites.
            return {name: np.array(value.numpy()) for name, value in buffers.values.items()}

    def _buffers(self, name: str, images: NDArray, outputs: tuple[str, ...]) -> _Buffers:
        key = images.shape, outputs
        if key not in self._kept:
            self._kept[key] = self._allocate(name, images, outputs)
        self._kept.move_to_end(key)
        if len(self._kept) > _KEPT and not self._cuda_graph:
            self._kept.popitem(last=False)
        return self._kept[key]

    def _allocate(self, name: str, images: NDArray, outputs: tuple[str, ...]) -> _Buffers:
        """Run once with outputs that onnxruntime allocates, which tells their shapes; keep them."""
        import onnxruntime

        on_device = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
            images.shape, images.dtype.type, self._device, 0
        )
        staging = _host_memory(images, pinned=self._device != "cpu")
        np.copyto(staging, images)
        on_device.update_inplace(staging)
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(name, on_device)
        for output in outputs:
            binding.bind_output(output, self._device, 0)
        self._session.run_with_iobinding(binding, self._run_options(_NOT_RECORDED))
        values = dict(zip(outputs, binding.get_outputs(), strict=True))
        for output, value in values.items():
            binding.bind_ortvalue_output(output, value)
        return _Buffers(staging, on_device, binding, values, self._run_options(self._graph()))

    def _graph(self) -> str:
        """Return the mark of the next graph to record; beyond so many shapes, none is."""
        self._recorded += 1
        return str(self._recorded) if self._recorded <= _KEPT else _NOT_RECORDED

    def _run_options(self, graph: str) -> Any:
        import onnxruntime

        options = onnxruntime.RunOptions()
        if self._cuda_graph:
            options.add_run_config_entry("gpu_graph_id", graph)
        return options


def _host_memory(like: NDArray, *, pinned: bool) -> NDArray:
    """Return room for an array; pinned, a GPU fetches it without a further copy by the driver."""
    if pinned:
        import torch

        if torch.cuda.is_available():
            dtype = torch.from_numpy(like[:0]).dtype
            return torch.empty(like.shape, dtype=dtype, pin_memory=True).numpy()
    return np.empty_like(like)
