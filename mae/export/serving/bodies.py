"""The body of a request -> the bytes of its images, counted as they come and never trusted."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from mae.data import reasons
from mae.export.serving.faults import (
    CUT,
    MALFORMED,
    TIMEOUT,
    TOO_MANY_IMAGES,
    WRONG_TYPE,
    Refusal,
    busy,
)
from mae.export.serving.settings import Limits

_FIELDS = 1000  # of a form, besides its files; none of them is looked at


@dataclass(frozen=True)
class Upload:
    """An image's bytes as they came. name: of a form's file, None for a body that is an image."""

    name: str | None
    data: bytes


class Budget:
    """Bytes that all requests hold together. For one thread: the event loop's."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.held = 0

    def take(self, count: int) -> None:
        """Raise Refusal where `count` more bytes are too many."""
        if self.held + count > self._limit:
            raise busy("the service holds as many bytes as it may")
        self.held += count

    def give_back(self, count: int) -> None:
        self.held -= count


@asynccontextmanager
async def uploads_of(
    request: Request, limits: Limits, budget: Budget
) -> AsyncIterator[list[Upload]]:
    """Read a request's images: its body as it is, or the files of a multipart form.

    Their bytes count as held until the block ends. Raises Refusal.
    """
    _check_declared(request, limits)
    body = _Body(request, limits, budget)
    try:
        try:
            async with asyncio.timeout(limits.seconds):
                uploads = await _read(request, body, limits)
        except TimeoutError:
            raise Refusal(
                408, TIMEOUT, f"the body was not there after {limits.seconds:g} seconds"
            ) from None
        except ClientDisconnect:
            raise Refusal(400, CUT, "the connection was cut within the body") from None
        yield uploads
    finally:
        budget.give_back(body.length)


def _check_declared(request: Request, limits: Limits) -> None:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limits.max_bytes:
        raise _too_long(limits)


def _too_long(limits: Limits) -> Refusal:
    return Refusal(
        413, reasons.TOO_LARGE, f"a body may have {limits.max_bytes} bytes, and this has more"
    )


class _Body:
    """The chunks of a body, counted whatever its header said of its length."""

    def __init__(self, request: Request, limits: Limits, budget: Budget) -> None:
        self._request = request
        self._limits = limits
        self._budget = budget
        self.length = 0

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        async for chunk in self._request.stream():
            if self.length + len(chunk) > self._limits.max_bytes:
                raise _too_long(self._limits)
            self._budget.take(len(chunk))
            self.length += len(chunk)
            yield chunk


async def _read(request: Request, body: _Body, limits: Limits) -> list[Upload]:
    header = request.headers.get("content-type", "application/octet-stream")
    kind = parse_options_header(header)[0].decode("latin-1").lower()
    if kind == "multipart/form-data":
        return await _read_form(request, body, limits)
    if kind == "application/octet-stream" or kind.startswith("image/"):
        return [Upload(None, b"".join([chunk async for chunk in body.chunks()]))]
    raise Refusal(
        415,
        WRONG_TYPE,
        f"{kind[:80] or 'no type at all'} is no image: send image/*, application/octet-stream, or "
        "multipart/form-data with files",
    )


class _InMemory(MultiPartParser):
    """Files stay in memory: the body's length is bounded, and disks are slow."""

    spool_max_size = 1 << 62
    ended = False

    def on_end(self) -> None:
        self.ended = True


async def _read_form(request: Request, body: _Body, limits: Limits) -> list[Upload]:
    parser = _InMemory(request.headers, body.chunks(), max_files=limits.queue, max_fields=_FIELDS)
    try:
        form = await parser.parse()
        if not parser.ended:
            raise MultiPartException("it ends before its last boundary")
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            detail = f"a request may hold {limits.queue} images, and this has more"
            raise Refusal(413, TOO_MANY_IMAGES, detail) from None
        raise Refusal(400, MALFORMED, f"the multipart form is broken: {error.message}") from None
    try:
        files = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
        if not files:
            detail = "the multipart form holds no file: give each image a part with a filename"
            raise Refusal(400, MALFORMED, detail)
        return [
            Upload(file.filename or f"image {number}", await file.read())
            for number, file in enumerate(files, start=1)
        ]
    finally:
        await form.close()
