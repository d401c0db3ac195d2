"""Which Prefect server to use. Settled before Prefect is imported, which reads it only then."""

import os
import urllib.error
import urllib.request

from mae.errors import MaestroError

LOCAL = "http://127.0.0.1:4200/api"


def use_server(url: str | None) -> bool:
    """Let Prefect use the server at `url`, else the one PREFECT_API_URL names; return if any.

    Raises MaestroError when it does not answer: Prefect would go on trying for minutes.
    """
    url = (url or os.environ.get("PREFECT_API_URL", "")).rstrip("/")
    if not url:
        return False
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=10):
            pass
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise MaestroError(
            f"no Prefect server answers at {url} ({error}): start one with 'prefect server start "
            "--host 127.0.0.1', or leave out --server and PREFECT_API_URL"
        ) from None
    os.environ["PREFECT_API_URL"] = url
    return True
