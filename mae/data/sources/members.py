"""The members of an archive as a tree. Nothing is ever unpacked to a path that one names."""

from collections.abc import Iterable
from dataclasses import dataclass

from mae.data import reasons
from mae.data.records import Location, Rejected
from mae.data.sources.files import Unusable
from mae.data.sources.names import has_image_suffix, inside, is_hidden, printable
from mae.data.sources.trees import Entry, Tree, nowhere, unsafe


@dataclass(frozen=True, slots=True)
class Member:
    """A member as its archive names it. Without a name: a fault of the archive itself."""

    name: str | None
    location: Location


class MemberTree(Tree):
    """Members in folders. Two of one name are both there; what points outside is a stray."""

    def __init__(self, title: str, members: Iterable[Member]) -> None:
        self.title = title
        self.strays: list[Rejected] = []
        self._folders: dict[str, list[Entry]] = {"": []}
        for member in members:
            self._add(member)
        for entries in self._folders.values():
            entries.sort(key=lambda entry: entry.sort_key)
        self._last: tuple[str, dict[str, Location]] = "", self.files("")

    def entries(self, folder: str) -> list[Entry]:
        return self._folders.get(folder, [])

    def find(self, name: str) -> Location:
        folder, _, last = (inside(name) or "").rpartition("/")
        if self._last[0] != folder:
            self._last = folder, self.files(folder)
        return self._last[1].get(last) or nowhere(self.title, name)

    def _add(self, member: Member) -> None:
        if member.name is None:
            if isinstance(member.location, Unusable):
                fault = member.location
                self.strays.append(Rejected(self.title, fault.reason, fault.detail))
            return
        name = inside(member.name)
        if name is None:
            if has_image_suffix(member.name):
                fault = unsafe(member.name)
                self.strays.append(Rejected(printable(member.name), fault.reason, fault.detail))
            return
        parts = name.split("/")
        if name and not any(is_hidden(part) for part in parts):
            folder, _, last = name.rpartition("/")
            self._folder(folder).append(Entry(last, member.location))

    def _folder(self, name: str) -> list[Entry]:
        """Return the entries of a folder, made with those above it when it is first met."""
        if name not in self._folders:
            above, _, last = name.rpartition("/")
            self._folder(above).append(Entry(last, None))
            self._folders[name] = []
        return self._folders[name]


def not_a_file(what: str) -> Unusable:
    return Unusable(reasons.UNSAFE, f"{what} in an archive, not a file")
