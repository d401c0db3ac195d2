"""An exported model in onnxruntime: opened, known to be ours, and run."""

import hashlib
import logging
import math
import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from mae.errors import CheckpointError, MaestroError
from mae.export.binding import BoundRunner
from mae.export.description import CLASSIFIER_OUTPUTS, INPUT, OUTPUTS, EncoderDescription
from mae.export.images import MAX_PIXELS, View
from mae.export.runtime import CPU, Settings, open_runtime

LOG = logging.getLogger(__name__)

Images = NDArray[np.uint8] | NDArray[np.uint16]
Features = dict[str, NDArray[np.float32]]

# Tokens of a piece of a batch on the CPU: about 5 images of 224 x 224 in patches of 16. With many
# threads there must be more for them to share. Measured by benchmarks/embedding.py.
_CACHED_TOKENS = 1000

_HINTS = {"encoder": "mae embed", "classifier": "mae classify"}
_ARTICLES = {"encoder": "an encoder", "classifier": "a classifier"}


@dataclass(frozen=True)
class _Opened:
    """A file that is ours, in onnxruntime."""

    path: Path
    session: Any
    about: EncoderDescription
    settings: Settings


class OnnxSession:
    """What sessions of both kinds share.

    path: the file. about: what it says of itself. provider: what runs it. Calls may come from
    several threads.
    """

    kind: ClassVar[str]

    def __init__(
        self,
        path: Path | str,
        device: str = "auto",
        *,
        threads: int = 0,
        tensorrt: bool = False,
        cuda_graph: bool = False,
        spinning: bool = True,
    ) -> None:
        """Open a file; the settings are those of mae.export.runtime.Settings.

        Raises CheckpointError for a file that is not of this kind or cannot be run, ParamsError
        for a device that cannot be had.
        """
        settings = Settings(device, threads, tensorrt, cuda_graph, spinning)
        self._take(_open(Path(path), settings))

    @classmethod
    def _around(cls, opened: _Opened) -> Self:
        session = cls.__new__(cls)
        session._take(opened)
        return session

    def _take(self, opened: _Opened) -> None:
        found = opened.about.kind
        if found != self.kind:
            raise CheckpointError(
                f"{opened.path} is {_ARTICLES[found]} and not {_ARTICLES[self.kind]}: "
                f"`{_HINTS[found]}` takes it"
            )
        self.path = opened.path
        self.about = opened.about
        self._session = opened.session
        self.provider: str = opened.session.get_providers()[0]
        self._threads = opened.settings.threads or len(os.sched_getaffinity(0))
        self._bound: BoundRunner | None = None
        if self.provider != CPU:
            self._bound = BoundRunner(opened.session, "cuda", cuda_graph=opened.settings.cuda_graph)
        LOG.info("%s on %s", self.path, self.provider)

    @cached_property
    def sha256(self) -> str:
        """The sha256 of the file, and of the weights beside it where they are a file of their own:
        which model this is."""
        digest = hashlib.sha256()
        for file in (self.path, self.path.with_name(f"{self.path.name}.data")):
            if file.is_file():
                with file.open("rb") as content:
                    while block := content.read(1 << 20):
                        digest.update(block)
        return digest.hexdigest()

    def view(self, max_pixels: int = MAX_PIXELS) -> View:
        """Return how files become this model's input: arrays of one shape."""
        a, resize = self.about.architecture, self.about.resize
        view = View.of(a, self.about.statistics, resize, max_pixels)
        # A graph that resizes gets what it would resize to, so that it has only to crop.
        return replace(view, crops=self.about.resolution != "resized")

    def _run(self, images: Images, outputs: tuple[str, ...]) -> Features:
        self.about.check(images, self.path.name)
        pixels = np.ascontiguousarray(images)
        try:
            if self._bound is not None:
                return self._bound(INPUT, pixels, outputs)
            return self._in_pieces(pixels, outputs)
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise MaestroError(
                f"{self.path.name} failed on a batch of {len(images)} with {self.provider}: "
                f"{str(error).strip().splitlines()[0]}; a smaller batch needs less memory"
            ) from error

    def _in_pieces(self, images: NDArray, outputs: tuple[str, ...]) -> Features:
        """Run a batch on the CPU a few images at a time: activations that stay in its caches are
        worth a quarter of the time."""
        length = max(1, _CACHED_TOKENS * max(1, self._threads // 4) // self._tokens(images))
        names = list(outputs)
        pieces = [
            self._session.run(names, {INPUT: images[start : start + length]})
            for start in range(0, max(len(images), 1), length)
        ]
        if len(pieces) == 1:
            return dict(zip(outputs, pieces[0], strict=True))
        whole = [np.concatenate(parts) for parts in zip(*pieces, strict=True)]
        return dict(zip(outputs, whole, strict=True))

    def _tokens(self, images: NDArray) -> int:
        """Return how many tokens one of the images becomes."""
        a = self.about.architecture
        resized = self.about.resolution == "resized"
        sides = (a.height, a.width) if resized else images.shape[2:]
        return math.prod(-(-side // patch) for side, patch in zip(sides, a.patch, strict=True)) + 1


class EncoderSession(OnnxSession):
    """Images uint8 or uint16 (N, C, H, W) -> {"cls": (N, D), "mean": (N, D), "patches":
    (N, D, Hp, Wp)}, float32."""

    kind = "encoder"

    @property
    def dim(self) -> int:
        return self.about.architecture.dim

    def __call__(self, images: Images, outputs: tuple[str, ...] = OUTPUTS) -> Features:
        """Run one batch. Raises ValueError for images of another shape or type."""
        return self._run(images, outputs)


class ClassifierSession(OnnxSession):
    """Images uint8 or uint16 (N, C, H, W) -> probabilities (N, K), float32, of `classes`."""

    kind = "classifier"

    @property
    def classes(self) -> tuple[str, ...]:
        return self.about.classes

    def __call__(self, images: Images) -> NDArray[np.float32]:
        """Run one batch. Raises ValueError for images of another shape or type."""
        return self._run(images, ("probabilities",))["probabilities"]


def open_session(
    path: Path | str, device: str = "auto", **settings: Any
) -> EncoderSession | ClassifierSession:
    """Open a file of either kind; arguments and errors as of OnnxSession."""
    opened = _open(Path(path), Settings(device, **settings))
    kinds: tuple[type[EncoderSession], type[ClassifierSession]] = EncoderSession, ClassifierSession
    by_kind = {kind.kind: kind for kind in kinds}
    return by_kind[opened.about.kind]._around(opened)


def _open(path: Path, settings: Settings) -> _Opened:
    session = open_runtime(path, settings)
    return _Opened(path, session, _describe(path, session), settings)


def _describe(path: Path, session: Any) -> EncoderDescription:
    """Return what the file says of itself, once its inputs and outputs are known to be ours."""
    inputs = [value.name for value in session.get_inputs()]
    outputs = tuple(value.name for value in session.get_outputs())
    if inputs != [INPUT] or outputs not in (OUTPUTS, CLASSIFIER_OUTPUTS):
        raise CheckpointError(
            f"{path} is not an encoder exported by Maestro: it maps {', '.join(inputs)} to "
            f"{', '.join(outputs)}, not {INPUT} to {', '.join(OUTPUTS)}"
        )
    try:
        about = EncoderDescription.from_metadata(session.get_modelmeta().custom_metadata_map)
    except KeyError as error:
        raise CheckpointError(
            f"{path} is not an encoder exported by Maestro: its metadata lacks {error}"
        ) from None
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be used: {error}; export the encoder again") from None
    if outputs != about.outputs:
        raise CheckpointError(
            f"{path} calls itself {_ARTICLES[about.kind]} and gives {', '.join(outputs)}: "
            "its metadata are another file's; export it again"
        )
    return about
