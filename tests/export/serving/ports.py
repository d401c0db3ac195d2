"""A service on a port of the loopback address, in a thread of this process."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn

from mae.export.serving.server import bind, configured
from mae.export.serving.service import Service
from mae.export.serving.settings import Limits, ServingSettings
from tests.export.serving.conftest import Files

PATIENCE = 60


@contextmanager
def listening(files: Files, limits: Limits | None = None, **settings: Any) -> Iterator[Any]:
    """A client of the service; `client.service` is the service, `client.port` its port."""
    plain: dict[str, Any] = {"device": "cpu", "threads": 1, "reload_seconds": 0}
    chosen = plain | {"limits": limits or Limits()} | settings
    service = Service(ServingSettings(str(files.encoder), **chosen))
    with bind("127.0.0.1", 0) as bound:
        server = uvicorn.Server(configured(service))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            until(lambda: server.started)
            port = bound.getsockname()[1]
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as client:
                client.service, client.port = service, port  # type: ignore[attr-defined]
                yield client
        finally:
            server.should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
