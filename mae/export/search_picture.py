"""What a search found, for people: query images and the images found, as rows or as a picture."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mae.data.reasons import ImageFault
from mae.data.records import Rejected
from mae.errors import DataError
from mae.evaluation.neighbour_picture import Shown, draw_neighbours
from mae.export.images import InputImage, View, input_images, read_image
from mae.export.listing import Listing
from mae.export.search import Match, SearchIndex
from mae.export.session import EncoderSession
from mae.files import replacing_file

# Rows of a picture; neighbours in one are as many as were asked for.
MOST_QUERIES = 40

_LETTERS = 18
_BATCH = 32


@dataclass(frozen=True)
class Answer:
    """A query image as the encoder sees it, and what the index has that is most like it."""

    query: InputImage
    matches: Sequence[Match]


def search_images(
    session: EncoderSession, index: SearchIndex, images: Path | str, k: int, workers: int
) -> tuple[list[Answer], list[Rejected]]:
    """Search with every image in `images`; return the answers, and what could not be read.

    Raises DataError where none can be used, CheckpointError for an index of another encoder.
    """
    index.demand_made_by(session)
    queries: list[InputImage] = []
    rejected: list[Rejected] = []
    for one in input_images(images, session.view(), workers):
        if isinstance(one, Rejected):
            rejected.append(one)
        else:
            queries.append(one)
    if not queries:
        raise DataError(f"{images}: {rejected[0].id} cannot be used: {rejected[0].detail}")
    answers: list[Answer] = []
    for start in range(0, len(queries), _BATCH):
        group = queries[start : start + _BATCH]
        vectors = session(np.stack([one.pixels for one in group]), (index.feature,))
        found = index.query(vectors[index.feature], k)
        answers += [Answer(query, one) for query, one in zip(group, found, strict=True)]
    return answers, rejected


def write_rows(answers: Sequence[Answer], path: Path) -> None:
    """Write a CSV: query, rank, key, similarity."""
    with replacing_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as f:
        rows = csv.writer(f, lineterminator="\n")
        rows.writerow(["query", "rank", "key", "similarity"])
        for answer in answers:
            for rank, match in enumerate(answer.matches, start=1):
                rows.writerow([answer.query.key, rank, match.key, f"{match.similarity:.6f}"])


def draw_answers(answers: Sequence[Answer], gallery: Listing, view: View, path: Path) -> None:
    """Write a PNG with a row for each of the first queries: itself, then its neighbours.

    gallery: where the images of the index are. Raises DataError where one is not there.
    """
    rows = []
    for answer in answers[:MOST_QUERIES]:
        query = Shown(_upright(answer.query.pixels), _end(answer.query.key))
        neighbours = [
            Shown(_find(match.key, gallery, view), f"{_end(match.key)}\n({match.similarity:.3f})")
            for match in answer.matches
        ]
        rows.append((query, neighbours))
    draw_neighbours(rows, path)


def _find(key: str, gallery: Listing, view: View) -> NDArray:
    try:
        return _upright(read_image(gallery.find(key).read(), view))
    except ImageFault as fault:
        raise DataError(
            f"--images does not hold {key}, which the index found ({fault.detail}): give what was "
            "embedded"
        ) from None


def _upright(pixels: NDArray) -> NDArray:
    return pixels.transpose(1, 2, 0)


def _end(key: str) -> str:
    return key if len(key) <= _LETTERS else f"…{key[1 - _LETTERS :]}"
