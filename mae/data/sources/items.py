"""One listed image -> a Record, or Rejected where the listing shows that it cannot be used."""

from typing import Any

from mae.data import reasons
from mae.data.records import Location, Record, Rejected
from mae.data.sources.files import Unusable
from mae.data.sources.names import is_read, suffix


def to_item(identity: str, name: str, location: Location, **known: Any) -> Record | Rejected:
    """Return the Record with what is `known` of it. name: the file's, for its suffix."""
    if not is_read(name):
        return Rejected(
            identity,
            reasons.UNSUPPORTED,
            f"{suffix(name)} is not read here: convert to PNG or JPEG",
        )
    if isinstance(location, Unusable):
        return Rejected(identity, location.reason, location.detail)
    return Record(identity, location, **known)
