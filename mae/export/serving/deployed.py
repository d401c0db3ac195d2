"""The models and the index in use, and how newer ones take their place while requests go on."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mae.errors import CheckpointError, MaestroError
from mae.export.images import View
from mae.export.models import CLASSIFIER_FILE, ENCODER_FILE, ModelSource, open_source
from mae.export.search import SearchIndex
from mae.export.serving.batching import Answer
from mae.export.serving.measures import Measures
from mae.export.serving.settings import ServingSettings
from mae.export.session import ClassifierSession, EncoderSession

LOG = logging.getLogger(__name__)

ENCODER, CLASSIFIER, INDEX = "encoder", "classifier", "index"
VECTORS = ("cls", "mean")

_LONGEST_PAUSE = 300.0  # seconds between two tries to open the same unusable model

Session = EncoderSession | ClassifierSession


@dataclass(frozen=True, eq=False)
class Deployed:
    """A model in use. It lives as long as a request needs it, also after a newer one came."""

    role: str
    version: str
    session: Session
    view: View
    since: datetime = field(default_factory=lambda: datetime.now(UTC))

    def run(self, images: NDArray) -> Answer:
        """Images (N, C, H, W) -> cls and mean (N, D) of an encoder, probabilities (N, K) else."""
        if isinstance(self.session, ClassifierSession):
            return {"probabilities": self.session(images)}
        return self.session(images, VECTORS)


@dataclass(frozen=True)
class Served:
    """What a request is answered with: taken once, so that its parts always fit each other.

    index is None where none was asked for, or where `index_problem` tells why it cannot be used.
    """

    encoder: Deployed
    classifier: Deployed | None = None
    index: SearchIndex | None = None
    index_problem: str | None = None


def deploy(
    role: str,
    source: ModelSource,
    version: str,
    settings: ServingSettings,
    instead_of: Deployed | None = None,
) -> Deployed:
    """Open a version of a model and run it once. Raises MaestroError."""
    kind = EncoderSession if role == ENCODER else ClassifierSession
    session = kind(source.fetch(version), settings.device, threads=settings.threads, spinning=False)
    deployed = Deployed(role, version, session, session.view(settings.limits.max_pixels))
    LOG.info("%s %s is %s", role, version, session.sha256)  # read now, before the file changes
    if source.current() != version:
        raise CheckpointError(f"{session.path} was replaced while it was opened: try again")
    if instead_of is not None:
        check_same_input(session, instead_of.session)
    view = deployed.view
    for images in sorted({1, settings.batch}):
        shape = images, view.channels, view.height, view.width
        deployed.run(np.zeros(shape, session.about.dtype))
    return deployed


def input_of(session: Session) -> dict[str, Any]:
    """Return what a caller sees of a model's input, and of the form of an encoder's answer."""
    a, statistics = session.about.architecture, session.about.statistics
    seen = {
        "channels": a.channels,
        "bit depth": statistics.bit_depth,
        "height": a.height,
        "width": a.width,
        "resolution": session.about.resolution,
    }
    return seen | ({"width of vectors": a.dim} if isinstance(session, EncoderSession) else {})


def check_same_input(new: Session, old: Session) -> None:
    """Raise CheckpointError where a model cannot take the other's place."""
    before, after = input_of(old), input_of(new)
    differ = [
        f"{name} {after[name]}, not {before[name]}"
        for name in before
        if after[name] != before[name]
    ]
    if differ:
        raise CheckpointError(
            f"{new.path} differs from the model in use: {', '.join(differ)}; start the service "
            "anew to serve it"
        )


@dataclass
class _Watched:
    """A model's source, and why its newest version is not in use."""

    source: ModelSource
    problem: str | None = None
    refused: str | None = None
    pause: float = 0.0
    not_before: float = 0.0

    def is_paused(self, version: str) -> bool:
        """Whether this very version was refused a short time ago."""
        return version == self.refused and time.monotonic() < self.not_before

    def failed(self, problem: str, version: str | None, pause: float) -> bool:
        """Note a problem, with a version or with asking for one; True when it is a new one."""
        again = problem == self.problem and version == self.refused
        self.pause = min(2 * self.pause, _LONGEST_PAUSE) if again else pause
        self.problem, self.refused = problem, version
        self.not_before = time.monotonic() + self.pause
        return not again

    def is_well(self) -> None:
        self.problem = self.refused = None


class Deployment:
    """Holds what is served, and looks for newer models and a newer index when told to.

    Opening raises MaestroError. Afterwards a model that cannot be used is refused, the one in use
    goes on, and `problems` tells why.
    """

    def __init__(self, settings: ServingSettings, measures: Measures) -> None:
        self._settings = settings
        self._measures = measures
        self._index_stamp = _stamp(settings.index)
        self._index_note: str | None = None
        self._watched = {ENCODER: _Watched(open_source(settings.model, ENCODER_FILE))}
        if settings.classifier is not None:
            source = open_source(settings.classifier, CLASSIFIER_FILE)
            self._watched[CLASSIFIER] = _Watched(source)
        first = {
            role: deploy(role, watched.source, watched.source.current(), settings)
            for role, watched in self._watched.items()
        }
        index = None
        if settings.index is not None:
            index = SearchIndex.open(settings.index)
            index.demand_made_by(first[ENCODER].session)
        self._served = Served(first[ENCODER], first.get(CLASSIFIER), index)
        self._tell()

    @property
    def served(self) -> Served:
        return self._served

    @property
    def problems(self) -> dict[str, str]:
        """Why what is served is not the newest there is: by role, empty when all is well."""
        found = {role: w.problem for role, w in self._watched.items() if w.problem}
        note = self._served.index_problem or self._index_note
        return found | ({INDEX: note} if note else {})

    def check(self) -> None:
        """Put newer models and a newer index in place, if there are any that can be used."""
        stamp = _stamp(self._settings.index)
        swapped = self._renew(ENCODER)
        if self._settings.index is not None and (swapped or stamp != self._index_stamp):
            self._index_stamp = stamp
            self._renew_index()
        if CLASSIFIER in self._watched:
            self._renew(CLASSIFIER)
        self._tell()

    def _renew(self, role: str) -> bool:
        """Put the newest version of a model in place; True where one was."""
        watched, current = self._watched[role], getattr(self._served, role)
        version = None
        try:
            version = watched.source.current()
            if version == current.version:
                watched.is_well()
                return False
            if watched.is_paused(version):
                return False
            new = deploy(role, watched.source, version, self._settings, instead_of=current)
        except MaestroError as error:
            if watched.failed(str(error), version, self._settings.reload_seconds):
                LOG.warning("%s %s stays in use: %s", role, current.version, error)
                self._measures.reloads.labels(role, "refused").inc()
            return False
        watched.is_well()
        self._put(new)
        LOG.info("%s %s took the place of %s", role, version, current.version)
        self._measures.reloads.labels(role, "loaded").inc()
        return True

    def _put(self, new: Deployed) -> None:
        if new.role == CLASSIFIER:
            self._served = replace(self._served, classifier=new)
            return
        index, problem = self._fitting(new)
        self._served = replace(self._served, encoder=new, index=index, index_problem=problem)

    def _renew_index(self) -> None:
        index, problem = self._fitting(self._served.encoder)
        self._served = replace(self._served, index=index, index_problem=problem)

    def _fitting(self, encoder: Deployed) -> tuple[SearchIndex | None, str | None]:
        """Return the index as it lies in its folder, else the one in use if that still fits."""
        self._index_note = None
        if self._settings.index is None:
            return None, None
        try:
            index = SearchIndex.open(self._settings.index)
            index.demand_made_by(encoder.session)
            return index, None
        except MaestroError as error:
            problem = str(error)
        old = self._served.index
        try:
            if old is not None:
                old.demand_made_by(encoder.session)
                self._index_note = problem
                LOG.warning("the index in use stays: %s", problem)
                return old, None
        except MaestroError:
            pass
        LOG.warning("no search until the index fits: %s", problem)
        return None, problem

    def _tell(self) -> None:
        self._measures.model_info.clear()
        served = self._served
        for model in (served.encoder, served.classifier):
            if model is not None:
                labels = model.role, model.version, model.session.sha256
                self._measures.model_info.labels(*labels).set(1)
        problems = self.problems
        watched = [*self._watched, *([INDEX] if self._settings.index is not None else [])]
        for role in watched:
            self._measures.model_problem.labels(role).set(role in problems)


def _stamp(folder: Path | None) -> list[tuple[str, int, int, int]]:
    """Return what changes when an index or any of its files is replaced."""
    if folder is None:
        return []
    try:
        found = [(file.name, file.stat()) for file in sorted(folder.iterdir())]
    except OSError:  # not there, or just being replaced
        return []
    return [(name, s.st_ino, s.st_size, s.st_mtime_ns) for name, s in found]


class Watch:
    """A thread that calls `check` every so many seconds until it is stopped."""

    def __init__(self, check: Callable[[], None], seconds: float) -> None:
        self._check = check
        self._seconds = seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="reload", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._stop.wait(self._seconds):
            try:
                self._check()
            except Exception:  # what is served goes on, whatever happens here
                LOG.exception("looking for a newer model failed")

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
