"""Which Prefect server to use. Settled before Prefect is imported, which reads it only then."""

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from mae.errors import MaestroError

LOCAL = "http://127.0.0.1:4200/api"


def use_server(url: str | None) -> bool:
    """Let Prefect use the server at `url`, else the one PREFECT_API_URL names; return if any.

    Raises MaestroError when it does not answer: Prefect would go on trying for minutes.
    """
    url = (url or os.environ.get("PREFECT_API_URL", "")).rstrip("/")
    if not url:
        return False
    if fault := why_silent(url):
        raise MaestroError(
            f"no Prefect server answers at {url} ({fault}): start one with 'prefect server start "
            "--host 127.0.0.1', or leave out --server and PREFECT_API_URL"
        )
    os.environ["PREFECT_API_URL"] = url
    return True


def why_silent(url: str) -> str:
    """Return why the server at `url` does not answer, empty where it does; at once."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=10):
            return ""
    except (urllib.error.URLError, OSError, ValueError) as error:
        return str(error)


@contextmanager
def losing_server_is_said() -> Iterator[None]:
    """Raise MaestroError where Prefect, after some minutes, gives up a server that has gone."""
    import httpx  # which Prefect has imported already, where this matters

    try:
        yield
    except httpx.HTTPError as error:
        raise MaestroError(
            f"the Prefect server has gone ({error}) and does not know how this run ended. What "
            "its stages did stands: run it again once the server is back, or without --server"
        ) from None
