"""The service on a port: listening, and an end that loses nothing that was accepted."""

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType

import uvicorn

from mae.errors import MaestroError
from mae.export.serving.app import create_app
from mae.export.serving.connections import LimitedProtocol
from mae.export.serving.service import Service

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_KEEP_ALIVE_SECONDS = 15
_ANSWER_SECONDS = 30  # for what has arrived, once the service is told to stop


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to the address, port 0 taking a free one. Raises MaestroError.

    It does not listen yet: nobody is to wait while models are opened.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise MaestroError(f"cannot listen on {host!r}: {error}") from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise MaestroError(
            f"cannot listen on port {port} of {host}: {error.strerror}; give another --port, or 0 "
            "for any that is free"
        ) from None
    return bound


def configured(service: Service) -> uvicorn.Config:
    """Return how uvicorn serves `service`."""
    limits = service.settings.limits
    return uvicorn.Config(
        create_app(service),
        http=partial(LimitedProtocol, limits=limits, measures=service.measures),  # type: ignore[arg-type]
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="error",  # what clients do wrong is counted, and must not fill a disk
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(limits.seconds) + _ANSWER_SECONDS,
    )


def run_service(service: Service, bound: socket.socket, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT, then answer what was accepted and return.

    `ready` is called once requests are taken. A second signal ends the process at once.
    """
    _Server(configured(service), ready).run(sockets=[bound])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """A stop that was asked for is no failure: uvicorn's own would raise the signal again."""
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(128 + sig)  # at once: nothing of the service is on disk
        self.should_exit = True
