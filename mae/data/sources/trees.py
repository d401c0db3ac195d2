"""Where files are: one small interface to folders, archives and buckets."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from mae.data import reasons
from mae.data.reasons import ImageFault
from mae.data.records import Location, Rejected
from mae.data.sources.files import Unusable
from mae.data.sources.names import has_image_suffix, inside, printable
from mae.errors import DataError


@dataclass(frozen=True, slots=True)
class Entry:
    """A file directly in a folder, or with no location a folder in it. `name` as found."""

    name: str
    location: Location | None

    @property
    def is_folder(self) -> bool:
        return self.location is None

    @property
    def sort_key(self) -> str:
        """Sort as whole relative paths do: a folder as if its slash were part of its name."""
        return f"{self.name}/" if self.is_folder else self.name


class Tree(ABC):
    """Files by relative posix names; hidden ones are not there. "" is the root.

    title: what messages call it. strays: what was met and has no place in the tree, such as an
    archive's members that point out of it.
    """

    title: str
    strays: Sequence[Rejected] = ()

    @abstractmethod
    def entries(self, folder: str) -> list[Entry]:
        """Return what lies directly in `folder`, sorted by Entry.sort_key; [] where there is no
        such folder. Raises DataError when it cannot be listed."""

    @abstractmethod
    def find(self, name: str) -> Location:
        """Return where the file of this name is, Unusable where that is known to be nowhere.

        Other places than a local folder know; there `read` finds out.
        """

    def identity(self, folder: str) -> str:
        """Return what is the same for two names of one folder."""
        return folder

    def folders(self, folder: str = "") -> list[str]:
        return [entry.name for entry in self.entries(folder) if entry.is_folder]

    def has_folder(self, name: str) -> bool:
        above, _, last = name.rpartition("/")
        return not name or last in self.folders(above)

    def loose_images(self, folder: str = "") -> list[str]:
        """Return the names of the images directly in `folder`."""
        files = (entry.name for entry in self.entries(folder) if not entry.is_folder)
        return [name for name in files if has_image_suffix(name)]

    def files(self, folder: str = "") -> dict[str, Location]:
        """Return the files directly in `folder`, by name; of two of one name the first."""
        found: dict[str, Location] = {}
        for entry in self.entries(folder):
            if entry.location is not None:
                found.setdefault(entry.name, entry.location)
        return found

    def read_text(self, name: str) -> str:
        """Return a text file's content. Raises DataError where it is missing or no UTF-8."""
        try:
            return self.find(name).read().decode("utf-8-sig")
        except ImageFault as fault:
            raise DataError(f"{self.title}: {name} cannot be read: {fault.detail}") from None
        except UnicodeDecodeError as error:
            raise DataError(f"{self.title}: {name} is not UTF-8 text ({error})") from None


class FilesBelow:
    """Every file below `folder` whose name is wanted, images if nothing else is said: sorted
    (relative name, location).

    A folder that contains itself, through a link, is visited once. `ignored` counts the files
    not wanted that were met on the way.
    """

    def __init__(
        self, tree: Tree, folder: str = "", wanted: Callable[[str], bool] = has_image_suffix
    ) -> None:
        self._tree = tree
        self._folder = folder.rstrip("/")
        self._wanted = wanted
        self.ignored = 0

    def __iter__(self) -> Iterator[tuple[str, Location]]:
        self.ignored = 0
        yield from self._below(self._folder, "", ())

    def _below(
        self, folder: str, prefix: str, above: tuple[str, ...]
    ) -> Iterator[tuple[str, Location]]:
        identity = self._tree.identity(folder)
        if identity in above:
            return
        for entry in self._tree.entries(folder):
            if entry.location is None:
                child = f"{folder}/{entry.name}" if folder else entry.name
                yield from self._below(child, f"{prefix}{entry.name}/", (*above, identity))
            elif self._wanted(entry.name):
                yield prefix + entry.name, entry.location
            else:
                self.ignored += 1


class Subtree(Tree):
    """A folder of another tree as a tree of its own."""

    def __init__(self, tree: Tree, folder: str) -> None:
        self._tree = tree
        self._folder = folder
        self.title = f"{tree.title}/{folder}"
        self.strays = tree.strays

    def entries(self, folder: str) -> list[Entry]:
        return self._tree.entries(self._name(folder))

    def find(self, name: str) -> Location:
        return self._tree.find(self._name(name))

    def identity(self, folder: str) -> str:
        return self._tree.identity(self._name(folder))

    def _name(self, name: str) -> str:
        return f"{self._folder}/{name}" if name else self._folder


class Mounted(Tree):
    """Several trees as the folders of one."""

    def __init__(self, title: str, trees: Mapping[str, Tree]) -> None:
        self._trees = dict(trees)
        self.title = title
        self.strays = [
            replace(stray, id=f"{name}/{stray.id}")
            for name, tree in self._trees.items()
            for stray in tree.strays
        ]

    def entries(self, folder: str) -> list[Entry]:
        if not folder:
            return sorted((Entry(name, None) for name in self._trees), key=lambda e: e.sort_key)
        first, _, rest = folder.partition("/")
        return self._trees[first].entries(rest) if first in self._trees else []

    def find(self, name: str) -> Location:
        first, _, rest = name.partition("/")
        if first not in self._trees or not rest:
            return nowhere(self.title, name)
        return self._trees[first].find(rest)

    def identity(self, folder: str) -> str:
        first, _, rest = folder.partition("/")
        return f"{first}/{self._trees[first].identity(rest)}" if first in self._trees else folder


def nowhere(title: str, name: str) -> Unusable:
    if inside(name) is None:
        return unsafe(name)
    return Unusable(reasons.MISSING, f"{printable(name)} is not in {title}")


def unsafe(name: str) -> Unusable:
    return Unusable(reasons.UNSAFE, f"the name {printable(name)!r} leads out of its folder")
