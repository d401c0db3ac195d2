"""Loaded by schemathesis: tells it what the document cannot say, that binary strings are images."""

import schemathesis
from hypothesis import strategies as st

from tests.export.serving.made import png

_IMAGES = st.integers(0, 99).map(lambda seed: png(seed, 9, 11))

schemathesis.openapi.media_type("application/octet-stream", _IMAGES)
schemathesis.openapi.media_type("image/*", _IMAGES)
schemathesis.openapi.format("binary", _IMAGES)
