"""Says that data have arrived, to a Prefect server whose deployment then retrains.

    python -m pipelines.watch                  looks at the sources, again and again
    python -m pipelines.watch --webhook 9100   says so when something is posted to that port
    python -m pipelines.watch --once           says so now: after an rsync, in a hook, from cron

It looks at names, lengths and times, and waits until they stay as they are, so that an upload is
over. What it says is the event `maestro.data.arrived`; whether the data are new to the champion is
for the retraining to find out.
"""

import argparse
import hmac
import logging
import os
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from mae.errors import MaestroError
from mae.params import read_params
from pipelines.deploy import EVENT
from pipelines.flows.server import LOCAL, use_server
from pipelines.harness import leave_with
from pipelines.sources_watch import look

LOG = logging.getLogger(__name__)
LONGEST = 1_000_000  # bytes read of what is posted, which is of no interest
TOKEN = "MAESTRO_WEBHOOK_TOKEN"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.watch", description="Say when data have arrived."
    )
    parser.add_argument("--server", metavar="URL", help=f"Prefect server ({LOCAL})")
    parser.add_argument("--root", type=Path, default=Path(), help="folder with params.yaml")
    parser.add_argument("--name", help="of the deployment that retrains (the folder's)")
    parser.add_argument("--every", type=float, default=60, metavar="SECONDS", help="(60)")
    parser.add_argument(
        "--settle", type=float, default=120, metavar="SECONDS", help="without a change (120)"
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--once", action="store_true", help="say it now, and leave")
    mode.add_argument(
        "--webhook",
        type=int,
        metavar="PORT",
        help=f"say it when posted to, on the loopback address; ${TOKEN}: what callers must know",
    )
    given = parser.parse_args()
    root = given.root.resolve()
    name = given.name or root.name
    use_server(given.server or os.environ.get("PREFECT_API_URL") or LOCAL)
    if given.once:
        say_arrived(name)
    elif given.webhook:
        listen(given.webhook, lambda: say_arrived(name), os.environ.get(TOKEN))
    else:
        os.chdir(root)  # paths in params.yaml count from there
        _require_something_to_see()
        watch(lambda: look(read_params()), lambda: say_arrived(name), given.every, given.settle)


def _require_something_to_see() -> None:
    params = read_params()
    if params.data.images.path is None and params.data.scenes.path is None:
        raise MaestroError("params.yaml names no source that could grow (data.images.path)")
    if look(params) is None:
        raise MaestroError(
            "a look does not tell whether a dataset of a hub has changed: retrain on a schedule, "
            "or use --once or --webhook"
        )


def say_arrived(name: str) -> None:
    """Tell the server. Raises MaestroError when it does not take it."""
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.events import Event, Resource

    event = Event(event=EVENT, resource=Resource({"prefect.resource.id": f"maestro.data.{name}"}))
    try:
        with get_client(sync_client=True) as client:
            client.request("POST", "/events", json=[event.model_dump(mode="json")])
    except (httpx.HTTPError, ValueError) as error:  # ValueError: what answers is no Prefect server
        raise MaestroError(f"the Prefect server did not take '{EVENT}': {error}") from None
    LOG.info("%s: maestro.data.%s", EVENT, name)


# --- looking ------------------------------------------------------------------------------------


class Arrivals:
    """Is shown what sources look like, and says when there is something to tell: what they look
    like is not what was told of last, and has been the same for `settle` seconds.

    At first too: something may have arrived while nobody looked.
    """

    def __init__(self, settle: float) -> None:
        self._settle = settle
        self._told: str | None = None
        self._seen: str | None = None
        self._since = 0.0

    def see(self, look: str, now: float) -> bool:
        if look != self._seen:
            self._seen, self._since = look, now
        return look != self._told and now - self._since >= self._settle

    def told(self) -> None:
        self._told = self._seen


def watch(
    look: Callable[[], str | None],
    tell: Callable[[], None],
    every: float,
    settle: float,
    wait: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> None:
    """Look for ever. A source out of reach, or a server that is gone, is logged and tried again."""
    arrivals = Arrivals(settle)
    trouble = ""
    while True:
        try:
            found = look()
            if found is not None and arrivals.see(found, now()):
                tell()
                arrivals.told()
            trouble = ""
        except MaestroError as error:
            if str(error) != trouble:
                trouble = str(error)
                LOG.warning("%s (trying again)", trouble)
        wait(every)


# --- being told ---------------------------------------------------------------------------------


def listen(port: int, tell: Callable[[], None], token: str | None) -> None:
    """Call `tell` for each POST to 127.0.0.1:`port`, for ever."""
    with receiver(port, tell, token) as server:
        LOG.info("listening on http://127.0.0.1:%d", server.server_port)
        server.serve_forever()


def receiver(port: int, tell: Callable[[], None], token: str | None) -> ThreadingHTTPServer:
    """Return a server that answers 202 once `tell` is through, 401 to callers without `token`
    (`Authorization: Bearer ...`), and 502 where `tell` raises MaestroError."""
    one_at_a_time = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        timeout = 30  # seconds for a caller to say all it has to say

        def do_POST(self) -> None:
            self.close_connection = True
            length = self.headers.get("content-length", "0")
            self.rfile.read(min(int(length), LONGEST) if length.isdigit() else 0)
            given = self.headers.get("authorization", "").removeprefix("Bearer ")
            if token and not hmac.compare_digest(given.encode(), token.encode()):
                self._answer(HTTPStatus.UNAUTHORIZED, "wrong or missing token")
                return
            try:
                with one_at_a_time:
                    tell()
            except MaestroError as error:
                LOG.warning("%s", error)
                self._answer(HTTPStatus.BAD_GATEWAY, str(error))
            else:
                self._answer(HTTPStatus.ACCEPTED, "told")

        def _answer(self, status: HTTPStatus, text: str) -> None:
            body = f"{text}\n".encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


if __name__ == "__main__":
    leave_with(main)
