"""Masked autoencoders, from images to a vision encoder: the library under the pipeline.

Nothing here knows of DVC, Prefect or Great Expectations' orchestration; see docs/architecture.md
for the rooms and who may import whom.
"""

__version__ = "0.1.0"
