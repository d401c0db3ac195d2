"""Results kept as they come, beside the file they will make: what was done is not done again."""

import fcntl
import hashlib
import json
import logging
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from mae.data.records import Rejected
from mae.errors import MaestroError
from mae.files import read_json, replacing_file, write_json

LOG = logging.getLogger(__name__)

_STATE = b"maestro.part"


@dataclass(frozen=True)
class Mark:
    """A place in a listing: how many images came before, and a hash of which ones they were."""

    seen: int = 0
    digest: str = ""

    def after(self, key: str, stamp: str) -> "Mark":
        """Return the place behind one more image, whose bytes change when its stamp does."""
        text = f"{self.digest}\0{key}\0{stamp}".encode("utf-8", "surrogateescape")
        return Mark(self.seen + 1, hashlib.blake2b(text, digest_size=16).hexdigest())


@dataclass(frozen=True)
class Part:
    """Rows of one stretch of a listing, what was left out of it, and where it ends."""

    rows: pa.Table
    rejected: list[Rejected]
    end: Mark


@dataclass
class Parts:
    """The folder `<out>.partial` with numbered files, each whole or not there."""

    folder: Path
    ends: list[Mark] = field(default_factory=list)
    rows: int = 0
    rejected: int = 0

    @property
    def end(self) -> Mark:
        return self.ends[-1] if self.ends else Mark()

    def add(self, part: Part) -> None:
        state = {"end": asdict(part.end), "rejected": [asdict(one) for one in part.rejected]}
        table = part.rows.replace_schema_metadata({_STATE: json.dumps(state).encode()})
        path = self._path(len(self.ends))
        with (
            _or_kept(self.folder),
            replacing_file(path) as temporary,
            pa.ipc.new_file(temporary, table.schema) as file,
        ):
            file.write_table(table)
        self._note(part)

    def __iter__(self) -> Iterator[Part]:
        """Yield the parts in order; one is in memory at a time."""
        return (_read(self._path(number)) for number in range(len(self.ends)))

    def find(self) -> None:
        """Take up the parts of an earlier run; what is damaged ends them."""
        while (path := self._path(len(self.ends))).is_file():
            try:
                self._note(_read(path))
            except (pa.ArrowException, KeyError, ValueError, TypeError):
                LOG.warning("%s is damaged: its images are done again", path)
                break
        self._forget_from(len(self.ends))

    def keep_what_fits(self, marks: Iterable[Mark]) -> None:
        """Keep the parts that end at one of `marks`, the places of today's listing in order.

        The first that does not, since images came, went or changed before its end, goes with all
        after it.
        """
        wanted = {end.seen: number for number, end in enumerate(self.ends)}
        fitting = 0
        for mark in islice(marks, self.end.seen):
            number = wanted.get(mark.seen)
            if number is None:
                continue
            if mark != self.ends[number]:
                break
            fitting = number + 1
        if fitting < len(self.ends):
            LOG.info("the images changed: %d of %d kept parts are used", fitting, len(self.ends))
            self.ends, self.rows, self.rejected = [], 0, 0
            self._forget_from(fitting)
            self.find()

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _note(self, part: Part) -> None:
        self.ends.append(part.end)
        self.rows += len(part.rows)
        self.rejected += len(part.rejected)

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.arrow"

    def _forget_from(self, number: int) -> None:
        for path in self.folder.glob("part-*.arrow"):
            if path.name >= self._path(number).name:
                path.unlink()
        for path in self.folder.glob(".part-*.tmp"):  # of a run that was killed
            path.unlink()


@contextmanager
def kept_parts(out: Path, identity: dict[str, Any]) -> Iterator[Parts]:
    """Yield what earlier runs of the same `identity` left for `out`; of another, it is removed.

    Nobody else may write the same file meanwhile. Raises MaestroError for that, and where `out`
    cannot be written.
    """
    folder = out.with_name(f"{out.name}.partial")
    with _or_kept(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MaestroError(
                f"another process is writing {out}: wait for it, or choose another --out"
            ) from None
        parts = Parts(folder)
        with _or_kept(folder):
            if _same(folder, identity):
                parts.find()
            else:
                parts._forget_from(0)
                write_json(folder / "identity.json", identity)
        try:
            yield parts
        finally:
            if not parts.ends:
                parts.remove()


def _same(folder: Path, identity: dict[str, Any]) -> bool:
    try:
        before = read_json(folder / "identity.json")
    except FileNotFoundError:
        return False
    except ValueError:
        before = {}
    identity = json.loads(json.dumps(identity))
    changed = sorted(name for name in identity if before.get(name) != identity[name])
    if changed:
        LOG.info("%s is of another %s: starting anew", folder, ", ".join(changed))
    return not changed


def _read(path: Path) -> Part:
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
    state = json.loads(table.schema.metadata[_STATE])
    rejected = [Rejected(**one) for one in state["rejected"]]
    return Part(table.replace_schema_metadata(None), rejected, Mark(**state["end"]))


@contextmanager
def _or_kept(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MaestroError(
            f"{folder} cannot be written ({error.strerror}): make room or choose another --out; "
            "where it was begun, the same command goes on with it"
        ) from None
