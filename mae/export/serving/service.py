"""What happens to a request's images: accepted, decoded by threads, run in batches, answered."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

import numpy as np
from fastapi import Request

from mae.data.reasons import ImageFault
from mae.export.images import read_image
from mae.export.serving.batching import Answer, Batcher
from mae.export.serving.bodies import Budget, Upload, uploads_of
from mae.export.serving.deployed import Deployed, Deployment, Watch
from mae.export.serving.faults import NOT_FINITE, Refusal, busy, not_an_answer
from mae.export.serving.measures import Measures
from mae.export.serving.settings import ServingSettings

Result = TypeVar("Result")

_SHOWN = 5  # of the faults of one request


class Service:
    """Models, an index and the threads that serve them. Opening raises MaestroError.

    Its coroutines belong to one event loop. `close` waits for what was accepted.
    """

    def __init__(self, settings: ServingSettings) -> None:
        self.settings = settings
        self.measures = Measures()
        self.deployment = Deployment(settings, self.measures)
        self.closing = False
        self._budget = Budget(settings.limits.held_bytes)
        self._accepted = 0
        self._decoders = ThreadPoolExecutor(settings.workers, thread_name_prefix="decode")
        self._batcher = Batcher(settings.batch, settings.wait_seconds, self.measures.ran)
        self._watch: Watch | None = None
        self.measures.queue.set_function(lambda: self._accepted)
        self.measures.held.set_function(lambda: self._budget.held)

    def start(self) -> None:
        """Begin to look for newer models."""
        if self.settings.reload_seconds:
            self._watch = Watch(self.deployment.check, self.settings.reload_seconds)

    def close(self) -> None:
        self.closing = True
        if self._watch is not None:
            self._watch.stop()
        self._decoders.shutdown()
        self._batcher.close()

    @asynccontextmanager
    async def images_of(self, request: Request) -> AsyncIterator[list[Upload]]:
        """Read a request's images and accept them, until the block ends. Raises Refusal."""
        self._check_room(1)  # before the body is read: a full queue is told at once
        async with uploads_of(request, self.settings.limits, self._budget) as uploads:
            self._check_room(len(uploads))
            self._accepted += len(uploads)
            try:
                yield uploads
            finally:
                self._accepted -= len(uploads)

    def _check_room(self, count: int) -> None:
        if self._accepted + count > self.settings.limits.queue:
            raise busy("the queue is full")

    async def run(self, model: Deployed, uploads: Sequence[Upload]) -> list[Answer]:
        """Return what `model` says of each image. Raises Refusal that names those it cannot use."""
        outcomes = await asyncio.gather(
            *(self._run_one(model, upload) for upload in uploads), return_exceptions=True
        )
        faults = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        for fault in faults:
            if not isinstance(fault, Refusal):
                raise fault
        refusals = [fault for fault in faults if isinstance(fault, Refusal)]
        if refusals:
            raise _together(refusals, len(uploads))
        return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]

    async def _run_one(self, model: Deployed, upload: Upload) -> Answer:
        try:
            pixels = await self.in_thread(read_image, upload.data, model.view)
        except ImageFault as fault:
            raise not_an_answer(fault, upload.name) from None
        self._budget.take(pixels.nbytes)
        try:
            answer = await asyncio.wrap_future(self._batcher.submit(model, pixels))
        finally:
            self._budget.give_back(pixels.nbytes)
        if not all(np.isfinite(value).all() for value in answer.values()):
            of = f"{upload.name}: " if upload.name else ""
            raise Refusal(422, NOT_FINITE, f"{of}the model gives no finite numbers for this image")
        return answer

    async def in_thread(self, function: Callable[..., Result], *arguments: object) -> Result:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._decoders, function, *arguments)


def _together(refusals: list[Refusal], images: int) -> Refusal:
    """Return one refusal for a request of which some images cannot be used."""
    first = refusals[0]
    if images == 1:
        return first
    details = [refusal.problem.detail for refusal in refusals[:_SHOWN]]
    more = len(refusals) - len(details)
    said = "; ".join(details) + (f"; and {more} more" if more else "")
    detail = f"{len(refusals)} of {images} images cannot be used, so none was: {said}"
    return Refusal(first.status, first.problem.error, detail)
