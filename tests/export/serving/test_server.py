"""`mae serve` as a process: says where it is, ends without losing a request, and errs clearly."""

import http.client
import signal
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mae.cli import app
from mae.errors import CheckpointError, MaestroError
from mae.export.serving.server import bind
from tests.export.serving import made
from tests.export.serving.conftest import Files

benchmark = pytest.importorskip("benchmarks.serving", reason="the benchmarks are not here")

PATIENCE = 300
CPU = ("--device", "cpu", "--threads", "1")


def begun(port: int, image: bytes) -> http.client.HTTPConnection:
    """A request of which the second half of the body is still to be sent."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.putrequest("POST", "/embed")
    connection.putheader("Content-Type", "image/png")
    connection.putheader("Content-Length", str(len(image)))
    connection.endheaders(image[: len(image) // 2])
    return connection


def refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE).close()
    except ConnectionRefusedError:
        return True
    return False


def test_sigterm_answers_what_was_accepted_and_refuses_the_rest(files: Files) -> None:
    image = made.png(1)
    with benchmark.served(files.encoder, *CPU) as served:
        waiting = begun(served.port, image)
        idle = http.client.HTTPConnection("127.0.0.1", served.port, timeout=PATIENCE)
        idle.request("GET", "/health")
        assert idle.getresponse().read() == b'{"status":"alive"}'
        served.process.send_signal(signal.SIGTERM)
        while not refused(served.port):
            pass
        assert served.process.poll() is None
        waiting.send(image[len(image) // 2 :])
        answer = waiting.getresponse()
        assert answer.status == 200 and b"embedding" in answer.read()
        assert served.process.wait(PATIENCE) == 0
    assert "stopped" in served.said[-1]
    assert not [line for line in served.said if "Traceback" in line]


def test_a_second_signal_ends_it_at_once(files: Files) -> None:
    with benchmark.served(files.encoder, *CPU) as served:
        waiting = begun(served.port, made.png(1))
        served.process.send_signal(signal.SIGINT)
        while not refused(served.port):
            pass
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(PATIENCE) == 128 + signal.SIGTERM
        waiting.close()
    assert not [line for line in served.said if "Traceback" in line]


def test_a_port_that_is_taken(files: Files) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = CliRunner().invoke(app, ["serve", "--model", str(files.encoder), "--port", port])
    assert isinstance(done.exception, MaestroError)
    assert f"port {port} of 127.0.0.1" in str(done.exception)
    with pytest.raises(MaestroError, match="cannot listen on 'no such host'"):
        bind("no such host", 0)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--model", "nowhere.onnx"], "does not exist"),
        (["--model", "no-such-name"], "no registered model"),
        (["--model", "{classifier}"], "is a classifier"),
        (["--model", "{encoder}", "--classifier", "{encoder}"], "is an encoder"),
        (["--model", "{other}", "--index", "{index}"], "another encoder"),
    ],
)
def test_what_cannot_be_served(
    files: Files, options: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    filled = [option.format(**vars(files)) for option in options]
    done = CliRunner().invoke(app, ["serve", "--port", "0", "--device", "cpu", *filled])
    assert isinstance(done.exception, CheckpointError)
    assert told in str(done.exception) and "\n" not in str(done.exception)


def test_help_names_every_option() -> None:
    shown = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200"}).output
    for option in (
        *("--model", "--classifier", "--index", "--host", "--port", "--max-megabytes"),
        *("--max-pixels", "--batch", "--wait-ms", "--queue", "--threads", "--device"),
        *("--reload-seconds", "--timeout", "--connections", "--workers"),
    ):
        assert option in shown
