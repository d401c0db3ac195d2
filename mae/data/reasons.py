"""Why an input was quarantined: the reason codes in manifest.parquet."""

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

ALL = frozenset(
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
    }
)
