"""onnxruntime: a file opened on the best device there is, or one sentence about why not."""

import ctypes
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mae.errors import CheckpointError, ParamsError

LOG = logging.getLogger(__name__)

CPU, CUDA, TENSORRT = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt"))

_ORT_ERRORS_ONLY = 3


@dataclass(frozen=True)
class Settings:
    """How a file is run.

    device: auto, cpu or cuda. threads: of one operator on the CPU, 0 leaves their number to
    onnxruntime. tensorrt: let it compile what it can; takes minutes, once for each shape.
    cuda_graph: record the kernels of each batch's shape and replay them: less work between them.
    spinning: threads without work keep their core, which is faster and wastes it between batches.
    """

    device: str = "auto"
    threads: int = 0
    tensorrt: bool = False
    cuda_graph: bool = False
    spinning: bool = True


def open_runtime(path: Path, settings: Settings) -> Any:
    """Return the onnxruntime.InferenceSession of a file.

    Raises CheckpointError where the file cannot be run, ParamsError where a device that was asked
    for cannot be had. A GPU that `auto` cannot use is a warning, never silence.
    """
    import onnxruntime

    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: run the export stage first")
    onnxruntime.disable_telemetry_events()
    providers = _providers(onnxruntime, settings)
    try:
        session = onnxruntime.InferenceSession(
            str(path), _options(onnxruntime, settings), providers=providers
        )
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        raise CheckpointError(_why_not(path, error, onnxruntime.__version__)) from None
    # Else a kernel that fails on the GPU would open the file again on the CPU, without a word.
    session.disable_fallback()
    _say_what_was_missed(session.get_providers(), providers, settings)
    return session


def _options(onnxruntime: Any, settings: Settings) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ORT_ERRORS_ONLY
    options.intra_op_num_threads = settings.threads
    options.add_session_config_entry(
        "session.intra_op.allow_spinning", "1" if settings.spinning else "0"
    )
    return options


# --- devices ----------------------------------------------------------------------------------


def gpus() -> int:
    """Return how many GPUs the NVIDIA driver shows to this process, 0 where there is no driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def _providers(onnxruntime: Any, settings: Settings) -> list[Any]:
    """Return the providers to ask for, best first."""
    if settings.device == "cpu":
        if settings.tensorrt or settings.cuda_graph:
            raise ParamsError("TensorRT and CUDA graphs need a GPU, and the device is cpu")
        return [CPU]
    if not gpus():
        if settings.device == "cuda" or settings.tensorrt or settings.cuda_graph:
            raise ParamsError(
                "cuda was asked for, and the NVIDIA driver shows no GPU here: use auto or cpu"
            )
        return [CPU]
    # Finds the CUDA and cuDNN libraries that came with torch from the package index.
    onnxruntime.preload_dlls()
    cuda = {
        # TF32 would round products to 10 bits, beyond what the parity gate allows.
        "use_tf32": 0,
        # The default tries every algorithm again for each new batch.
        "cudnn_conv_algo_search": "HEURISTIC",
        # The default doubles, and so takes memory from others on the same GPU.
        "arena_extend_strategy": "kSameAsRequested",
        "enable_cuda_graph": int(settings.cuda_graph),
    }
    wanted: list[Any] = [(CUDA, cuda), CPU]
    if settings.tensorrt:
        wanted.insert(0, (TENSORRT, _tensorrt(settings)))
    return wanted


def _tensorrt(settings: Settings) -> dict[str, Any]:
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "maestro/tensorrt"
    cache.mkdir(parents=True, exist_ok=True)
    return {
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": True,
        "trt_timing_cache_path": str(cache),
        "trt_cuda_graph_enable": settings.cuda_graph,
    }


def _say_what_was_missed(got: list[str], asked: list[Any], settings: Settings) -> None:
    names = [one if isinstance(one, str) else one[0] for one in asked]
    missed = [name for name in names if name not in got]
    if not missed:
        return
    sentence = (
        f"there is a GPU, but onnxruntime cannot use {' and '.join(missed)} (is onnxruntime-gpu "
        "installed, built for this driver's CUDA, with the libraries it wants?)"
    )
    if settings.device == "cuda" or (settings.tensorrt and TENSORRT in missed):
        raise ParamsError(f"{sentence}; mend the installation, or use cpu")
    LOG.warning("%s: running on %s", sentence, got[0])


# --- files that cannot be run -----------------------------------------------------------------


def _why_not(path: Path, error: Exception, version: str) -> str:
    """Return what is wrong with a file that onnxruntime refused, in one sentence."""
    import onnx

    said = str(error).strip().splitlines()[0]
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # protobuf's errors too share no base class
        return f"{path} is not an ONNX file that can be run: {said}"
    if (about_data := _why_not_data(path, model)) is not None:
        return about_data
    for used in model.opset_import:
        if used.domain in ("", "ai.onnx") and used.version > onnx.defs.onnx_opset_version():
            return (
                f"{path} uses opset {used.version}, which onnxruntime {version} does not know: "
                "upgrade onnxruntime, or export again with a lower export.opset"
            )
    return f"{path} is not an ONNX file that can be run: {said}"


def _why_not_data(path: Path, model: Any) -> str | None:
    """Return what is wrong with the weights that lie beside the graph, None where nothing is."""
    from mae.export.graph_files import external_weights

    for about in external_weights(model):
        data = path.parent / about.location
        if not data.is_file():
            return (
                f"{path} keeps its weights in {about.location}, which is not beside it: copy both "
                "files to one folder, under the names they had"
            )
        if data.stat().st_size < (about.offset or 0) + (about.length or 0):
            return f"{data}, the weights of {path.name}, is cut short: copy or export it again"
    return None
