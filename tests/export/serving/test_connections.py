"""Clients that are slow, many, silent, rude or gone: each is told, and none holds the service."""

import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from mae.export.serving.settings import Limits
from tests.export.serving import made
from tests.export.serving.conftest import Files
from tests.export.serving.ports import PATIENCE, listening, until


def connect(client: Any) -> socket.socket:
    return socket.create_connection(("127.0.0.1", client.port), timeout=PATIENCE)


def received(connection: socket.socket) -> tuple[int, dict[str, str]]:
    """Everything until the server closes, as status and problem."""
    content = b""
    while block := connection.recv(1 << 16):
        content += block
    head, _, body = content.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


HEAD = b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n"
PATIENT = Limits(seconds=PATIENCE)
HASTY = Limits(seconds=1)


@pytest.mark.parametrize("sent", [b"", b"POST /embed HT", HEAD[:-20], HEAD % 9000 + b"\x89PNG"])
def test_slow_clients_are_told_and_let_go(
    files: Files, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mae.export.serving.connections._GRACE_SECONDS", 0.5)
    with listening(files, HASTY) as client, connect(client) as slow:
        slow.sendall(sent)
        status, problem = received(slow)
        assert (status, problem["error"]) == (408, "timeout")
        assert made.counted(client, "maestro_rejected_total", reason="timeout") == 1
        assert client.post("/embed", content=made.png(1)).status_code == 200


def test_a_drip_does_not_prolong_the_time(files: Files) -> None:
    with listening(files, HASTY) as client, connect(client) as slow:
        slow.sendall(HEAD % 9000)
        done = threading.Event()

        def drip() -> None:
            while not done.wait(0.05):
                try:
                    slow.sendall(b"x")
                except OSError:
                    return

        dripping = threading.Thread(target=drip)
        dripping.start()
        status, problem = received(slow)
        done.set()
        dripping.join()
        assert (status, problem["error"]) == (408, "timeout")


def test_what_follows_a_refusal_is_not_read_for_ever(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mae.export.serving.connections._GRACE_SECONDS", 0.2)
    with listening(files, Limits(seconds=0.3, max_bytes=1000)) as client, connect(client) as rude:
        rude.sendall(HEAD % (1 << 40))
        with pytest.raises(OSError):
            while True:
                rude.sendall(b"x" * 10_000)
        until(lambda: connections(client) == 1)


def connections(client: Any) -> float:
    return made.counted(client, "maestro_connections")


def test_a_connection_that_is_cut(files: Files) -> None:
    with listening(files, PATIENT) as client:
        for sent in (HEAD % 9000, HEAD % 9000 + made.png(1)[:5000], b"POST"):
            with connect(client) as cut:
                cut.sendall(sent)
        until(lambda: made.counted(client, "maestro_rejected_total", reason="cut") == 2)
        until(lambda: connections(client) == 1)  # the client's own
        assert made.counted(client, "maestro_held_bytes") == 0
        assert client.post("/embed", content=made.png(1)).status_code == 200


def test_a_refused_body_is_answered_also_while_it_is_sent(files: Files) -> None:
    """The answer must not be lost to a reset of the connection."""
    with listening(files, Limits(max_bytes=10_000)) as client:
        for _ in range(5):
            answer = client.post("/embed", content=b"x" * 5_000_000)
            assert (answer.status_code, answer.json()["error"]) == (413, "too_large")

        def stream() -> Iterator[bytes]:
            for _ in range(300):
                yield b"x" * 10_000

        answer = client.post("/embed", content=stream())
        assert (answer.status_code, answer.json()["error"]) == (413, "too_large")


def test_what_is_not_http(files: Files) -> None:
    with listening(files, PATIENT) as client, connect(client) as odd:
        odd.sendall(b"\x16\x03\x01 is the beginning of TLS\r\n\r\n")
        status, problem = received(odd)
        assert (status, problem["error"]) == (400, "malformed")


def test_too_many_connections(files: Files) -> None:
    with listening(files, Limits(connections=2, seconds=PATIENCE)) as client:
        held = [connect(client) for _ in range(2)]
        until(lambda: connections(client) == 3)  # probes are answered
        assert client.get("/health").status_code == 200
        answer = client.post("/embed", content=made.png(1))
        assert (answer.status_code, answer.json()["error"]) == (503, "busy")
        assert answer.headers["retry-after"]
        with connect(client), connect(client) as beyond:
            assert beyond.recv(1) == b""  # four are there: nobody is answered
        for one in held:
            one.close()
        until(lambda: connections(client) == 1)
        with httpx.Client(base_url=client.base_url, timeout=PATIENCE) as fresh:
            assert fresh.post("/embed", content=made.png(1)).status_code == 200


def test_who_does_not_take_the_answer_is_let_go(files: Files) -> None:
    with listening(files, Limits(seconds=1)) as client:
        with connect(client) as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.sendall(b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n" * 4)
            until(lambda: connections(client) == 2)
            until(lambda: connections(client) == 1)
        assert client.post("/embed", content=made.png(1)).status_code == 200
