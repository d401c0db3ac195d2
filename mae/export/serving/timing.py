"""Counts and times every request, under the few names that routes have."""

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mae.export.serving.measures import Measures

_OTHER = "other"  # of all paths without a route, or each made-up path would be a series


class Timed:
    def __init__(self, app: ASGIApp, measures: Measures) -> None:
        self._app = app
        self._measures = measures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500
        started = time.perf_counter()

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            endpoint = getattr(scope.get("route"), "path", _OTHER)
            self._measures.requests.labels(endpoint, str(status)).inc()
            self._measures.seconds.labels(endpoint).observe(time.perf_counter() - started)
