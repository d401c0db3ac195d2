"""From artifacts/pretrain to artifacts/export: write, compare with torch, and only then keep."""

import logging
import time
from pathlib import Path

from mae.export.description import EncoderDescription
from mae.export.onnx_export import PixelEncoder, write_onnx
from mae.export.parity import (
    enforce_parity,
    held_out_images,
    measure_parity,
    parity_numbers,
)
from mae.export.session import EncoderSession
from mae.files import replacing_folder
from mae.model.artifact import load_encoder
from mae.params import ExportParams, RuntimeParams
from mae.training.devices import resolve_device

LOG = logging.getLogger(__name__)

FILE = "encoder.onnx"


def export_encoder(
    pretrained: Path, shards: Path, folder: Path, params: ExportParams, runtime: RuntimeParams
) -> dict[str, float]:
    """Write `folder`/encoder.onnx and return flat numbers for the metrics.

    The folder appears only once the file agrees with torch on held-out images, on the CPU and
    on a GPU where the run has one. Raises MaestroError otherwise.
    """
    started = time.monotonic()
    artifact = load_encoder(pretrained)
    about = EncoderDescription.of(artifact)
    held_out = held_out_images(shards, about, params.parity_images, runtime)
    model = PixelEncoder(artifact.encoder, artifact.statistics)
    devices = sorted({"cpu", resolve_device(runtime.device).type})
    with replacing_folder(folder) as temporary:
        write_onnx(temporary / FILE, model, about, params.opset)
        deviations = []
        for device in devices:
            session = EncoderSession(temporary / FILE, device)
            found = measure_parity(model, session, held_out)
            enforce_parity(found, params, session.provider)
            deviations += found
        megabytes = sum(file.stat().st_size for file in temporary.iterdir()) / 1e6
    LOG.info(
        "%s: %.1f MB, %d %s images", folder / FILE, megabytes, len(held_out.keys), held_out.split
    )
    return {
        **parity_numbers(deviations),
        "parity_images": float(len(held_out.keys)),
        "file_mb": round(megabytes, 3),
        "seconds": round(time.monotonic() - started, 2),
    }
