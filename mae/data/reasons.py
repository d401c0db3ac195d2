"""Why an input was quarantined: the reason codes in manifest.parquet."""


class ImageFault(Exception):
    """An input cannot be used. `reason` is a code below, `detail` a sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


EMPTY = "empty"  # zero bytes
UNREADABLE = "unreadable"  # the operating system will not give the bytes
MISSING = "missing"  # annotated, but the file is not there
DANGLING_LINK = "dangling_link"  # a symbolic link to nothing
NOT_AN_IMAGE = "not_an_image"  # the bytes are something else
UNSUPPORTED = "unsupported"  # an image, but of a kind that cannot be used as it is
TRUNCATED = "truncated"  # the bytes end too early
DAMAGED = "damaged"  # the decoder gave up
TOO_SMALL = "too_small"  # a side below data.min_side
TOO_LARGE = "too_large"  # more pixels than data.max_pixels; never decoded
DUPLICATE_ID = "duplicate_id"  # the same name came before
BAD_ANNOTATION = "bad_annotation"  # annotations that do not fit the image
UNSAFE = "unsafe"  # an archive member that points out of its archive, a link or a device in one
DUPLICATE = "duplicate"  # the bytes of another image; data.duplicates.exact says drop
NEAR_DUPLICATE = "near_duplicate"  # looks like another; data.duplicates.near says drop
STRADDLES = "straddles"  # belongs with images of different splits at once
EXCLUDED = "excluded"  # its label is in data.exclude_labels
REMOVED = "removed"  # named in data/removals.txt
GONE = "gone"  # was in the shards and is in the source no longer

FAULTS = frozenset(
    {
        EMPTY,
        UNREADABLE,
        MISSING,
        DANGLING_LINK,
        NOT_AN_IMAGE,
        UNSUPPORTED,
        TRUNCATED,
        DAMAGED,
        TOO_SMALL,
        TOO_LARGE,
        DUPLICATE_ID,
        BAD_ANNOTATION,
        UNSAFE,
    }
)
# Left out by choice, not for a fault of the image.
SET_ASIDE = frozenset({DUPLICATE, NEAR_DUPLICATE, STRADDLES, EXCLUDED, REMOVED, GONE})
ALL = FAULTS | SET_ASIDE
