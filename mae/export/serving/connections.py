"""Connections that cannot be held for ever: their number, and the time a client may take."""

import asyncio
import json
from typing import Any

import h11
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from mae.export.serving.faults import BUSY, MALFORMED, RETRY_SECONDS, TIMEOUT, Problem
from mae.export.serving.measures import Measures
from mae.export.serving.settings import Limits

# What an orchestrator asks also of a crowded service.
_PROBES = frozenset({"/health", "/ready", "/metrics"})

# The application tells a slow client first, where a request has begun.
_GRACE_SECONDS = 5.0


class LimitedProtocol(H11Protocol):
    """HTTP/1.1 as uvicorn speaks it, for clients that may be slow, many or hostile.

    A request has `limits.seconds` to arrive, and its answer as long to be taken, with every pause
    of reading or writing that the client makes. Beyond `limits.connections` only probes are
    answered; beyond twice as many nobody is.
    """

    def __init__(self, *arguments: Any, limits: Limits, measures: Measures, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._limits = limits
        self._measures = measures
        self._arriving: asyncio.TimerHandle | None = None
        self._leaving: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        others = len(self.connections)
        super().connection_made(transport)
        self._measures.connections.set(len(self.connections))
        if others >= 2 * self._limits.connections:
            self._measures.rejected.labels(BUSY).inc()
            transport.abort()
            return
        if others >= self._limits.connections:
            self.app = Crowded(self.app, self._measures)
        self._watch_arrival()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_arrival()
        self._end_leave()
        super().connection_lost(exc)
        self._measures.connections.set(len(self.connections))

    def data_received(self, data: bytes) -> None:
        self._watch_arrival()
        super().data_received(data)
        if not self._is_arriving():
            self._end_arrival()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._leaving is None:
            self._leaving = self.loop.call_later(self._limits.seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._end_leave()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, MALFORMED, msg)

    def _watch_arrival(self) -> None:
        if self._arriving is None:
            wait = self._limits.seconds + _GRACE_SECONDS
            self._arriving = self.loop.call_later(wait, self._too_slow)

    def _end_arrival(self) -> None:
        if self._arriving is not None:
            self._arriving.cancel()
            self._arriving = None

    def _end_leave(self) -> None:
        if self._leaving is not None:
            self._leaving.cancel()
            self._leaving = None

    def _is_arriving(self) -> bool:
        """Whether a request has begun to come and is not there yet."""
        if self.conn.their_state is h11.IDLE:
            return bool(self.conn.trailing_data[0])
        return self.conn.their_state is h11.SEND_BODY

    def _too_slow(self) -> None:
        self._arriving = None
        if self.conn.our_state is h11.IDLE:
            self._refuse(408, TIMEOUT, f"no whole request after {self._limits.seconds:g} seconds")
        else:
            self.transport.abort()

    def _refuse(self, status: int, error: str, detail: str) -> None:
        """Answer what never became a request of the application, and close."""
        self._measures.rejected.labels(error).inc()
        body = Problem(error=error, detail=detail).model_dump_json().encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        response = h11.Response(status_code=status, headers=headers, reason=STATUS_PHRASES[status])
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class Crowded:
    """Answers probes, and everybody else that there are too many."""

    def __init__(self, app: ASGIApp, measures: Measures) -> None:
        self._app = app
        self._measures = measures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in _PROBES:
            await self._app(scope, receive, send)
            return
        self._measures.rejected.labels(BUSY).inc()
        detail = "too many connections: try again in a moment"
        body = json.dumps({"error": BUSY, "detail": detail}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"retry-after", str(RETRY_SECONDS).encode()),
        ]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": body})
