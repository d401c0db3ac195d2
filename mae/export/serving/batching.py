"""Images of several requests -> one inference: a queue, and the one thread that runs models."""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

# What a model says of one image: vectors by name.
Answer = dict[str, NDArray[np.float32]]


class Model(Protocol):
    """Something that turns images (N, C, H, W) into arrays whose first axis is N."""

    def run(self, images: NDArray) -> Answer: ...


@dataclass(frozen=True)
class _Job:
    model: Model
    pixels: NDArray
    answer: Future[Answer]
    arrived: float

    @property
    def group(self) -> tuple[int, tuple[int, ...]]:
        """What jobs of one batch share: the model as it was when they came, and the shape."""
        return id(self.model), self.pixels.shape


class Batcher:
    """Collects images of one model and shape until there are `batch`, or the first of them has
    waited `wait_seconds`; then runs them together.

    A batch that fails is run again image by image, so that none spoils the others' answers.
    """

    def __init__(
        self,
        batch: int,
        wait_seconds: float,
        ran: Callable[[int, float], None] = lambda images, seconds: None,
    ) -> None:
        self._batch = batch
        self._wait = wait_seconds
        self._ran = ran
        self._groups: dict[tuple[int, tuple[int, ...]], deque[_Job]] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="inference", daemon=True)
        self._thread.start()

    def submit(self, model: Model, pixels: NDArray) -> Future[Answer]:
        """Queue an image (C, H, W). Raises RuntimeError after close."""
        job = _Job(model, pixels, Future(), time.monotonic())
        with self._changed:
            if self._closing:
                raise RuntimeError("the batcher is closed")
            self._groups.setdefault(job.group, deque()).append(job)
            self._changed.notify()
        return job.answer

    def close(self) -> None:
        """Run what is queued, then end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while jobs := self._next_batch():
            self._run([job for job in jobs if job.answer.set_running_or_notify_cancel()])
            del jobs  # or the last batch, and its model, would stay until the next one

    def _next_batch(self) -> list[_Job]:
        """Wait for a batch; [] when closing and nothing is left."""
        with self._changed:
            while not self._groups:
                if self._closing:
                    return []
                self._changed.wait()
            group, jobs = min(self._groups.items(), key=lambda item: item[1][0].arrived)
            due = jobs[0].arrived + self._wait
            while len(jobs) < self._batch and not self._closing:
                left = due - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            taken = [jobs.popleft() for _ in range(min(len(jobs), self._batch))]
            if not jobs:
                del self._groups[group]
            return taken

    def _run(self, jobs: list[_Job]) -> None:
        if not jobs:
            return
        started = time.perf_counter()
        try:
            answers = jobs[0].model.run(np.stack([job.pixels for job in jobs]))
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].answer.set_exception(error)
                return
            for job in jobs:
                self._run([job])
            return
        self._ran(len(jobs), time.perf_counter() - started)
        for row, job in enumerate(jobs):
            # A copy: a view would keep the whole batch for as long as any of its answers.
            job.answer.set_result({name: value[row].copy() for name, value in answers.items()})
