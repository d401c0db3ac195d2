"""A folder of images -> one vector each, in a table that is whole or not there."""

import csv
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mae.data.records import Rejected
from mae.errors import DataError
from mae.export.images import MAX_PIXELS, InputImage, View, input_images
from mae.export.session import EncoderSession
from mae.export.tables import EmbeddingWriter, writer_for
from mae.files import replacing_file, sha256_of_file
from mae.params import Feature

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Embedded:
    """How many images became vectors, and which did not."""

    images: int
    rejected: list[Rejected]
    rejected_file: Path | None


def embed_folder(
    session: EncoderSession,
    images: Path,
    out: Path,
    *,
    feature: Feature,
    batch: int,
    workers: int,
    max_pixels: int = MAX_PIXELS,
) -> Embedded:
    """Write the `feature` of every image below `images` to `out`, .parquet or .npy.

    Images that cannot be used are left out and listed in `<out>.rejected.csv`. Raises DataError
    when there is no image that can be used; then `out` is as it was before.
    """
    about = session.about
    view = View.of(about.architecture, about.statistics, about.resize, max_pixels)
    provenance = {
        "model_sha256": sha256_of_file(session.path),
        "feature": feature,
        "data_fingerprint": about.training.get("data_fingerprint"),
    }
    rejected: list[Rejected] = []
    written = 0
    with (
        writer_for(out, session.dim, provenance) as writer,
        tqdm(desc="embed", unit=" images", mininterval=0.5) as bar,
    ):
        for group in _batches(input_images(images, view, workers), batch, rejected, bar):
            _write(session, feature, group, writer)
            written += len(group)
        if not written:
            raise DataError(
                f"none of the {len(rejected)} images in {images} can be used; "
                f"{rejected[0].id}: {rejected[0].detail}"
            )
    return Embedded(written, rejected, _list_rejected(out, rejected))


def _batches(
    images: Iterator[InputImage | Rejected], batch: int, rejected: list[Rejected], bar: tqdm
) -> Iterator[list[InputImage]]:
    group: list[InputImage] = []
    for image in images:
        bar.update()
        if isinstance(image, Rejected):
            rejected.append(image)
            bar.set_postfix(rejected=len(rejected))
            continue
        group.append(image)
        if len(group) == batch:
            yield group
            group = []
    if group:
        yield group


def _write(
    session: EncoderSession, feature: Feature, group: list[InputImage], writer: EmbeddingWriter
) -> None:
    vectors = session(np.stack([image.pixels for image in group]), (feature,))[feature]
    writer.add([image.key for image in group], vectors)


def _list_rejected(out: Path, rejected: list[Rejected]) -> Path | None:
    """Write the list beside `out`, or remove the list of an earlier run when all is well now."""
    path = out.with_name(f"{out.name}.rejected.csv")
    if not rejected:
        path.unlink(missing_ok=True)
        return None
    with replacing_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as f:
        rows = csv.writer(f)
        rows.writerow(["key", "reason", "detail"])
        rows.writerows([image.id, image.reason, image.detail] for image in rejected)
    return path
