"""Noticing that data have arrived: looks, webhooks, and what is said to a server."""

import http.client
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mae.errors import DataError, MaestroError
from pipelines.watch import Arrivals, receiver, watch
from tests.pipelines.project import Project
from tests.pipelines.receivers import running


class Over(Exception):
    """Ends a watch that else goes on for ever."""


def told_at(looks: list[str], settle: float = 2) -> list[int]:
    """Return the seconds at which something was told, with one look a second."""
    arrivals, told = Arrivals(settle), []
    for second, look in enumerate(looks):
        if arrivals.see(look, second):
            told.append(second)
            arrivals.told()
    return told


def test_what_was_there_is_told_of_once_and_new_things_when_they_have_settled() -> None:
    assert told_at(list("aaaaaa")) == [2]
    assert told_at(list("aaaabcdddd")) == [2, 8]
    assert told_at(list("abababab")) == []
    assert told_at(list("aaabaaa")) == [2], "what came went away again"


@given(st.lists(st.sampled_from("ab"), max_size=30), st.integers(0, 4))
def test_nothing_is_told_twice_nor_before_it_has_settled(looks: list[str], settle: int) -> None:
    told = told_at(looks, settle)
    for second in told:
        assert len(set(looks[second - settle : second + 1])) == 1
    assert all(looks[one] != looks[other] for one, other in pairwise(told))


def test_trouble_is_said_once_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", logger="pipelines.watch")
    answers = iter(["gone", "gone", "a", "a", "a", "b", "b"])
    server = iter([False, False, True, True])
    told: list[float] = []
    clock = iter(range(100))

    def look() -> str:
        answer = next(answers, None)
        if answer is None:
            raise Over
        if answer == "gone":
            raise DataError("the bucket is out of reach")
        return answer

    def tell() -> None:
        if not next(server):
            raise MaestroError("the server is gone")
        told.append(1)

    with pytest.raises(Over):
        watch(look, tell, 1, 0, wait=lambda _: None, now=lambda: next(clock))
    assert len(told) == 2
    assert [record.getMessage() for record in caplog.records] == [
        "the bucket is out of reach (trying again)",
        "the server is gone (trying again)",
    ]


# --- webhook ------------------------------------------------------------------------------------


@pytest.fixture
def calls() -> list[str]:
    return []


@pytest.fixture
def port(calls: list[str]) -> Iterator[int]:
    def tell() -> None:
        calls.append("told")
        if len(calls) > 1:
            raise MaestroError("the server is gone")

    with receiver(0, tell, "secret") as server, running(server):
        yield server.server_port


def post(port: int, body: bytes = b"", **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", "/", body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_a_post_with_the_token_is_passed_on(port: int, calls: list[str]) -> None:
    assert post(port)[0] == 401
    assert post(port, Authorization="Bearer wrong")[0] == 401
    assert calls == []
    assert post(port, b"{}" * 100_000, Authorization="Bearer secret") == (202, "told\n")
    status, said = post(port, Authorization="Bearer secret")
    assert (status, said) == (502, "the server is gone\n")
    assert len(calls) == 2


# --- as a program -------------------------------------------------------------------------------


@pytest.fixture
def healthy() -> Iterator[str]:
    """A server that answers and takes no events."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def do_POST(self) -> None:
            self.send_response(403)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    with running(server):
        yield f"http://127.0.0.1:{server.server_port}/api"


def test_what_cannot_be_watched(project: Project, healthy: str) -> None:
    def said() -> str:
        done = project.python("-m", "pipelines.watch", "--server", healthy, check=False)
        assert done.returncode in (1, 3) and "Traceback" not in done.stderr
        return done.stderr

    assert "names no source that could grow" in said()
    params = yaml.safe_load((project.root / "params.yaml").read_text())
    params["data"]["images"] = {"source": "huggingface", "path": "some/dataset"}
    (project.root / "params.yaml").write_text(yaml.safe_dump(params))
    assert "retrain on a schedule" in said()
    done = project.python("-m", "pipelines.watch", "--once", "--server", healthy, check=False)
    assert done.returncode == 1 and "did not take 'maestro.data.arrived'" in done.stderr


def test_a_server_that_is_gone_is_an_error_at_once(project: Project) -> None:
    gone = "http://127.0.0.1:9/api"
    done = project.python("-m", "pipelines.watch", "--once", "--server", gone, check=False)
    assert done.returncode == 1 and "no Prefect server answers" in done.stderr
