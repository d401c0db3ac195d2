"""Images -> one vector each, in a table that is whole or not there."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mae.errors import CheckpointError
from mae.export.images import MAX_PIXELS
from mae.export.listing import list_images
from mae.export.session import EncoderSession, OnnxSession
from mae.export.streaming import Streamed, Work, stream_images
from mae.export.tables import check_suffix, embedding_schema
from mae.params import Feature


def embed_images(
    session: EncoderSession,
    images: Path | str,
    out: Path,
    *,
    feature: Feature,
    batch: int,
    workers: int,
    split: str | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Streamed:
    """Write the `feature` of every image in `images` (as list_images takes it) to `out`.

    `out` ends in .parquet or .npy. Restarting, rejected images and errors as stream_images says.
    """
    check_suffix(out, (".parquet", ".npy"))
    view = session.view(max_pixels)
    provenance = provenance_of(session) | {"feature": feature}

    def columns(pixels: NDArray) -> list[pa.Array]:
        vectors = session(pixels, (feature,))[feature]
        demand_finite(session, vectors)
        values = pa.array(np.ascontiguousarray(vectors).reshape(-1))
        return [pa.FixedSizeListArray.from_arrays(values, session.dim)]

    schema = embedding_schema(session.dim, provenance)
    work = Work("embed", columns, schema, {**provenance, "provider": session.provider})
    listing = list_images(images, view, split)
    return stream_images(listing, view, work, out, batch=batch, workers=workers)


def provenance_of(session: OnnxSession) -> dict[str, str | None]:
    """Return what tables say of the model that made them."""
    return {
        "model_sha256": session.sha256,
        "data_fingerprint": session.about.training.get("data_fingerprint"),
    }


def demand_finite(session: OnnxSession, values: NDArray) -> None:
    """Raise CheckpointError where a model answered with NaN or infinity."""
    if not np.isfinite(values).all():
        raise CheckpointError(
            f"{session.path} gives values that are no numbers on {session.provider}: use the "
            "float32 file"
        )
