"""Features on disk: computed once for an encoder and a split, shared by all protocols.

A folder runs/features/<fingerprint>/ holds features.npy, float32 (n, W), and about.json with its
sha256. The fingerprint is of everything that decides the numbers: weights, architecture,
normalisation and frame of the images, data, split and positions in it, precision, and the code
between a stored image and its vector. Folders may be deleted at any time.
"""

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mae.data.loading.evaluation import evaluation_batches
from mae.errors import DataError
from mae.evaluation.features import Embedder, FrozenArm, embedding_precision, select
from mae.evaluation.labelled import EVALUATION_BATCH, LabelledSplit
from mae.files import fingerprint, read_json, replacing_file, sha256_of_file, write_json
from mae.params import FrozenFeature, Params
from mae.training.devices import Place

LOG = logging.getLogger(__name__)

FOLDER = Path("runs/features")

FORMAT = 1
_KEPT = 16  # folders; those in use are never taken away
_IN_USE = 3600  # seconds after the last reading


def features_of(
    arm: FrozenArm, split: LabelledSplit, feature: FrozenFeature, params: Params, place: Place
) -> Tensor:
    """Return a feature of every image of the split in order: float32 (n, D), mapped from disk.

    Where they are not there yet, all processes compute them, each some of the batches, to the
    same bits as one process would; the disk is common to all. Writing to the tensor does not
    change the file. Raises DataError for features that are not finite and for a full disk.
    """
    folder = FOLDER / _fingerprint(arm, split, place)
    if not _leader_finds(folder, len(split), arm.embedded_width, place):
        _compute(folder, arm, split, params, place)
    vectors = np.load(folder / "features.npy", mmap_mode="c")
    return select(torch.from_numpy(vectors), arm, feature)


def _fingerprint(arm: FrozenArm, split: LabelledSplit, place: Place) -> str:
    """Both features of an encoder lie in one folder, so it does not depend on which is asked."""
    architecture = arm.encoder.architecture.to_dict() if arm.encoder is not None else None
    return fingerprint(
        {
            "format": FORMAT,
            "code": _code(),
            "weights": arm.weights_sha,
            "architecture": architecture,
            "statistics": arm.statistics.to_dict(),
            "frame": [arm.height, arm.width, arm.resize],
            "data": split.reader.info.fingerprint,
            "split": split.name,
            "ids": hashlib.sha256(split.ids.numpy().tobytes()).hexdigest(),
            "precision": embedding_precision(place.device),
        }
    )[:32]


@cache
def _code() -> str:
    """Return a hash of the code between a stored image and its vector."""
    mae = Path(__file__).parents[1]
    folders = ("model", "data/loading", "data/decoding")
    files = [path for folder in folders for path in (mae / folder).glob("*.py")]
    files += [mae / "pixels.py", mae / "evaluation" / "features.py"]
    return fingerprint([sha256_of_file(path) for path in sorted(files)])


# --- finding --------------------------------------------------------------------------------------


def _leader_finds(folder: Path, rows: int, width: int, place: Place) -> bool:
    """Whether the features are there and whole: one process looks, so that all do the same."""
    sound = torch.zeros(1, device=place.device)
    if place.leads and _is_sound(folder, rows, width):
        sound += 1
        os.utime(folder)  # the newest use decides what is kept
    return bool(place.sum(sound) > 0)


def _is_sound(folder: Path, rows: int, width: int) -> bool:
    try:
        about = read_json(folder / "about.json")
        whole = about["shape"] == [rows, width] and about["sha256"] == sha256_of_file(
            folder / "features.npy"
        )
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        LOG.warning("the features in %s are damaged: they are computed again", folder)
    return whole


# --- computing ------------------------------------------------------------------------------------


def _compute(
    folder: Path, arm: FrozenArm, split: LabelledSplit, params: Params, place: Place
) -> None:
    chunks = _chunks(arm, split, params, place)
    if place.leads:
        _make_room()
        _keep(folder, (len(split), arm.embedded_width), chunks)
    else:
        for _ in chunks:
            pass
    place.wait_for_all()


def _chunks(arm: FrozenArm, split: LabelledSplit, params: Params, place: Place) -> Iterator[Tensor]:
    """Yield the vectors of all images in order, some batches at a time, on every process.

    Batches are cut as one process cuts them, and process r computes every r-th: the same images
    side by side give the same bits.
    """
    embedder = Embedder(arm, place.device)
    loader = evaluation_batches(
        split.reader,
        arm,
        workers=params.runtime.workers,
        batch=EVALUATION_BATCH,
        positions=_positions_here(split, place),
    )
    mine = iter(loader)
    step = EVALUATION_BATCH * place.world_size
    for start in range(0, len(split), step):
        count = min(step, len(split) - start)
        batch = next(mine, None)
        rows = torch.zeros(0, arm.embedded_width, device=place.device)
        if batch is not None:
            rows = embedder(batch.images)
        if place.world_size > 1:  # all must bring as many rows to be gathered
            rows = nn.functional.pad(rows, (0, 0, 0, EVALUATION_BATCH - len(rows)))
        vectors = place.gather(rows, count).cpu()
        if not vectors.isfinite().all():
            raise DataError(
                f"the features of '{arm.name}' are not finite: its weights come from a training "
                "that diverged, or overflow in this precision"
            )
        yield vectors


def _positions_here(split: LabelledSplit, place: Place) -> Tensor:
    batches = split.positions.split(EVALUATION_BATCH)[place.rank :: place.world_size]
    return torch.cat(batches) if batches else split.positions[:0]


def _keep(folder: Path, shape: tuple[int, int], chunks: Iterator[Tensor]) -> None:
    """Write the chunks as they come, so that memory does not grow with the data.

    Each file is replaced whole, the checksum last: of two stages that compute the same at once
    either one's are right.
    """
    header: dict[str, Any] = {"descr": "<f4", "fortran_order": False, "shape": shape}
    try:
        with replacing_file(folder / "features.npy") as temporary:
            with temporary.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                for vectors in chunks:
                    file.write(vectors.contiguous().numpy().data)
            about = {"shape": list(shape), "sha256": sha256_of_file(temporary)}
        write_json(folder / "about.json", about)
    except OSError as error:
        raise DataError(
            f"features cannot be kept in {folder.parent} ({error.strerror}): make room there; "
            "everything in it may be deleted"
        ) from None


def _make_room() -> None:
    """Delete what was not used for longest. A file that is mapped stays readable when deleted."""
    kept = sorted(FOLDER.glob("*/"), key=_last_used, reverse=True)
    for folder in kept[_KEPT:]:
        if time.time() - _last_used(folder) > _IN_USE:
            shutil.rmtree(folder, ignore_errors=True)


def _last_used(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:  # another process was quicker
        return 0.0
