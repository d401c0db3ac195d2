"""Images -> their most probable classes, in a table that is whole or not there."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mae.export.embed import demand_finite, provenance_of
from mae.export.images import MAX_PIXELS
from mae.export.listing import list_images
from mae.export.session import ClassifierSession
from mae.export.streaming import Streamed, Work, stream_images
from mae.export.tables import check_suffix, prediction_schema


def classify_images(
    session: ClassifierSession,
    images: Path | str,
    out: Path,
    *,
    top: int,
    batch: int,
    workers: int,
    split: str | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Streamed:
    """Write the `top` classes of every image in `images` (as list_images takes it) to `out`.

    `out` ends in .csv or .parquet. Restarting, rejected images and errors as stream_images says.
    """
    check_suffix(out, (".csv", ".parquet"))
    view = session.view(max_pixels)
    provenance = provenance_of(session)
    names = np.array(session.classes, dtype=object)
    top = min(top, len(names))

    def columns(pixels: NDArray) -> list[pa.Array]:
        probabilities = session(pixels)
        demand_finite(session, probabilities)
        best = most_probable(probabilities, top)
        values = np.take_along_axis(probabilities, best, axis=1)
        return [
            pa.array(column)
            for rank in range(top)
            for column in (names[best[:, rank]], values[:, rank])
        ]

    schema = prediction_schema(top, provenance)
    work = Work("classify", columns, schema, {**provenance, "provider": session.provider})
    listing = list_images(images, view, split)
    return stream_images(listing, view, work, out, batch=batch, workers=workers)


def most_probable(probabilities: NDArray[np.float32], top: int) -> NDArray[np.int64]:
    """Return the indices (N, top) of the largest of (N, K); of equal ones the first class."""
    return np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
