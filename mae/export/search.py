"""Nearest neighbours among embeddings: an HNSW graph on disk, mapped into memory and not loaded."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from mae.errors import CheckpointError, DataError, ParamsError
from mae.export.session import OnnxSession
from mae.export.tables import KEY, open_embeddings, vectors_of
from mae.files import read_json, replacing_folder, sha256_of_file, write_json
from mae.params import Feature

FORMAT = 1
_GRAPH, _KEYS, _ABOUT = "index.usearch", "keys.parquet", "index.json"

# Links of a vertex, and candidates looked at while building and while searching. Malkov and
# Yashunin (arXiv 1603.09320) find 16 links enough for vectors as correlated as features are.
_LINKS, _BUILDING, _SEARCHING = 16, 128, 64

_ROWS = 16384  # embeddings in memory at a time, while building


@dataclass(frozen=True)
class Match:
    """An image of the index, and the cosine of its vector with the query's."""

    key: str
    similarity: float


def build_index(embeddings: Path, folder: Path) -> int:
    """Write the index of a table of `mae embed` to `folder`; return the number of images.

    Vectors are compared by their cosine. The folder is replaced as a whole. Building is shared
    among the processor's cores, so two indices of one table find the same without being equal
    bytes. Raises MaestroError for a table or a folder that cannot be used.
    """
    from usearch.index import Index

    table, made_by = open_embeddings(embeddings)
    _check_replaceable(folder)
    dim = table.schema_arrow.field("embedding").type.list_size
    index = Index(ndim=dim, metric="cos", dtype="f32", connectivity=_LINKS, expansion_add=_BUILDING)
    count = table.metadata.num_rows
    with replacing_folder(folder) as temporary:
        schema = pa.schema([pa.field(KEY, pa.string(), nullable=False)])
        with (
            pq.ParquetWriter(temporary / _KEYS, schema, compression="zstd") as keys,
            tqdm(desc="index", total=count, unit=" images", mininterval=0.5) as bar,
        ):
            for start, batch in _batches(table):
                vectors = vectors_of(batch)
                _check_finite(embeddings, vectors, batch)
                index.add(np.arange(start, start + len(vectors), dtype=np.uint64), vectors)
                keys.write_batch(pa.record_batch([batch.column(KEY)], schema=schema))
                bar.update(len(vectors))
        index.save(temporary / _GRAPH)
        about = {
            "format": FORMAT,
            "model_sha256": made_by.get("model_sha256", "unknown"),
            "data_fingerprint": made_by.get("data_fingerprint"),
            "feature": made_by.get("feature"),
            "dim": dim,
            "count": count,
            "sha256": {name: sha256_of_file(temporary / name) for name in (_GRAPH, _KEYS)},
        }
        write_json(temporary / _ABOUT, about)
    return count


def _batches(table: pq.ParquetFile) -> Iterator[tuple[int, pa.RecordBatch]]:
    start = 0
    for batch in table.iter_batches(batch_size=_ROWS, columns=[KEY, "embedding"]):
        yield start, batch
        start += len(batch)


def _check_finite(path: Path, vectors: NDArray, batch: pa.RecordBatch) -> None:
    broken = ~np.isfinite(vectors).all(axis=1)
    if broken.any():
        key = batch.column(KEY)[int(broken.argmax())].as_py()
        raise DataError(f"{path}: the embedding of {key} holds values that are no numbers")


def _check_replaceable(folder: Path) -> None:
    """An index takes the place of an older one or of nothing, never of somebody's files."""
    if folder.is_file():
        raise ParamsError(f"--out {folder} is a file: name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / _ABOUT).is_file():
        raise ParamsError(f"--out {folder} holds other files than an index: name a new folder")


class SearchIndex:
    """An opened index. model_sha256, feature: what its vectors, and so queries, are made with.

    Queries may come from several threads.
    """

    def __init__(self, folder: Path, about: dict[str, Any], graph: Any, keys: pa.ChunkedArray):
        self.folder = folder
        self.feature: Feature = about["feature"]
        self.model_sha256: str = about["model_sha256"]
        self.data_fingerprint: str | None = about["data_fingerprint"]
        self.dim: int = about["dim"]
        self.count: int = about["count"]
        self._graph = graph
        self._keys = keys
        self._lock = threading.Lock()

    @classmethod
    def open(cls, folder: Path | str) -> "SearchIndex":
        """Raises DataError where there is no index, or one that is damaged or another's."""
        from usearch.index import Index

        folder = Path(folder)
        try:
            about = read_json(folder / _ABOUT)
            if about["format"] != FORMAT:
                raise DataError(f"{folder} is not of format {FORMAT}: build the index again")
            # The library trusts a graph's links, so a byte that changed could end the process.
            for name, expected in about["sha256"].items():
                if sha256_of_file(folder / name) != expected:
                    raise ValueError(f"{name} is not as it was written")
            keys = pq.read_table(folder / _KEYS)[KEY]
            graph = Index(ndim=about["dim"], metric="cos", dtype="f32", expansion_search=_SEARCHING)
            graph.view(str(folder / _GRAPH))
            if not len(keys) == len(graph) == about["count"]:
                raise ValueError("its files are of different lengths")
            return cls(folder, about, graph, keys)
        except (FileNotFoundError, NotADirectoryError) as error:
            missing = Path(error.filename or folder).name
            raise DataError(
                f"{folder} is no index, it has no {missing}: `mae search build` writes one"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"the index {folder} is damaged ({error}): build it again") from None

    def query(self, vectors: NDArray[np.float32], k: int) -> list[list[Match]]:
        """Return the nearest images of each vector (N, D), the most similar first.

        There are min(k, count) of each. Raises ValueError for vectors of another width.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise ValueError(f"{self.folder} takes vectors (N, {self.dim}), not {vectors.shape}")
        k = min(k, self.count)
        if not len(vectors):
            return []
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        with self._lock:  # the library keeps one set of working memory for all callers
            self._graph.expansion_search = max(_SEARCHING, 2 * k)
            found = self._graph.search(vectors, k)
        rows, distances = np.atleast_2d(found.keys), np.atleast_2d(found.distances)
        return [
            [
                Match(self._keys[int(row)].as_py(), 1.0 - float(distance))
                for row, distance in zip(*one, strict=True)
            ]
            for one in zip(rows, distances, strict=True)
        ]

    def demand_made_by(self, session: OnnxSession) -> None:
        """Raise CheckpointError unless `session` is the encoder whose vectors these are."""
        if (width := session.about.architecture.dim) != self.dim:
            raise CheckpointError(
                f"the index {self.folder} holds vectors of {self.dim} numbers and {session.path} "
                f"makes {width}: it was built with another encoder; embed and build again"
            )
        if session.sha256 != self.model_sha256:
            raise CheckpointError(
                f"the index {self.folder} was built with another encoder than {session.path} "
                f"({self.model_sha256[:12]} and {session.sha256[:12]}): embed and build again"
            )
