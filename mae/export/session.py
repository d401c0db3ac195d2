"""An exported encoder in onnxruntime: opened, checked and run."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mae.errors import CheckpointError, ParamsError
from mae.export.description import INPUT, OUTPUTS, EncoderDescription
from mae.training.devices import resolve_device

LOG = logging.getLogger(__name__)

Images = NDArray[np.uint8] | NDArray[np.uint16]
Features = dict[str, NDArray[np.float32]]

_ORT_ERRORS_ONLY = 3


class EncoderSession:
    """Images uint8 or uint16 (N, C, H, W) -> {"cls": (N, D), "mean": (N, D), "patches":
    (N, D, Hp, Wp)}, float32.

    `device` is auto, cpu or cuda; `threads` 0 leaves the number to onnxruntime. Raises
    CheckpointError for a file that is no encoder of ours, ParamsError for a GPU that cannot be had.
    """

    def __init__(self, path: Path | str, device: str = "auto", threads: int = 0) -> None:
        self.path = Path(path)
        self._session = _open(self.path, device, threads)
        self.about = _describe(self.path, self._session)
        self.provider: str = self._session.get_providers()[0]
        LOG.info("%s on %s", self.path, self.provider)

    @property
    def dim(self) -> int:
        return self.about.architecture.dim

    def __call__(self, images: Images, outputs: tuple[str, ...] = OUTPUTS) -> Features:
        """Run one batch. Raises ValueError for images of another shape or type."""
        self._check(images)
        values = self._session.run(list(outputs), {INPUT: np.ascontiguousarray(images)})
        return dict(zip(outputs, values, strict=True))

    def _check(self, images: Images) -> None:
        a = self.about.architecture
        wanted = (a.channels, a.height, a.width)
        if images.shape[1:] != wanted or images.ndim != 4 or str(images.dtype) != self.about.dtype:
            raise ValueError(
                f"{self.path.name} takes {self.about.dtype} images (N, {wanted[0]}, {wanted[1]}, "
                f"{wanted[2]}) and was given {images.dtype} {images.shape}"
            )


def _open(path: Path, device: str, threads: int) -> Any:
    import onnxruntime

    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: run the export stage first")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ORT_ERRORS_ONLY
    options.intra_op_num_threads = threads
    providers = _providers(onnxruntime, device)
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{path} is not an ONNX file that can be run: {reason}") from None
    _say_what_was_missed(session, providers, device)
    return session


def _providers(onnxruntime: Any, device: str) -> list[Any]:
    """Return the providers to ask for, best first."""
    if resolve_device(device).type == "cpu":
        return ["CPUExecutionProvider"]
    # Finds the CUDA and cuDNN libraries that came with torch from the package index.
    onnxruntime.preload_dlls()
    # TF32 would round products to 10 bits, beyond what the parity gate allows.
    return [("CUDAExecutionProvider", {"use_tf32": 0}), "CPUExecutionProvider"]


def _say_what_was_missed(session: Any, asked: list[Any], device: str) -> None:
    if len(asked) == 1 or session.get_providers()[0] == "CUDAExecutionProvider":
        return
    missed = (
        "torch sees a GPU but onnxruntime cannot use it (is onnxruntime-gpu installed, and built "
        "for this CUDA version?)"
    )
    if device == "cuda":
        raise ParamsError(f"device is cuda: {missed}; use cpu, or mend the installation")
    LOG.warning("%s: running on the CPU", missed)


def _describe(path: Path, session: Any) -> EncoderDescription:
    """Return what the file says of itself, once its inputs and outputs are known to be ours."""
    inputs = [value.name for value in session.get_inputs()]
    outputs = [value.name for value in session.get_outputs()]
    if inputs != [INPUT] or outputs != list(OUTPUTS):
        raise CheckpointError(
            f"{path} is not an encoder exported by Maestro: it maps {', '.join(inputs)} to "
            f"{', '.join(outputs)}, not {INPUT} to {', '.join(OUTPUTS)}"
        )
    try:
        return EncoderDescription.from_metadata(session.get_modelmeta().custom_metadata_map)
    except KeyError as error:
        raise CheckpointError(
            f"{path} is not an encoder exported by Maestro: its metadata lacks {error}"
        ) from None
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be used: {error}; export the encoder again") from None
