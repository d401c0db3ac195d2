"""What notifications are sent to, on the loopback address: HTTP, Slack behind TLS, SMTP."""

import datetime
import ipaddress
import json
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Received:
    path: str
    host: str
    body: str

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class HttpReceiver:
    """`answer` is the status it gives."""

    url: str = ""
    answer: int = 200
    received: list[Received] = field(default_factory=list)


@contextmanager
def http_receiver(context: ssl.SSLContext | None = None) -> Iterator[HttpReceiver]:
    receiver = HttpReceiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            receiver.received.append(Received(self.path, self.headers["host"], body))
            self.send_response(receiver.answer)
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    receiver.url = f"{'https' if context else 'http'}://127.0.0.1:{server.server_port}"
    with running(server):
        yield receiver


@contextmanager
def running(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# --- Slack --------------------------------------------------------------------------------------


@contextmanager
def slack(folder: Path) -> Iterator[tuple[HttpReceiver, dict[str, str]]]:
    """A stand-in for hooks.slack.com, and the environment in which it is taken for it: a proxy
    that leads every connection there, and the authority that its certificate is signed by.
    """
    certificate(folder, "hooks.slack.com")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    with http_receiver(context) as receiver:
        port = int(receiver.url.rpartition(":")[2])

        class Tunnel(BaseHTTPRequestHandler):
            def do_CONNECT(self) -> None:
                with socket.create_connection(("127.0.0.1", port)) as other:
                    self.send_response(200)
                    self.end_headers()
                    self.wfile.flush()
                    back = threading.Thread(target=pump, args=(other, self.connection))
                    back.start()
                    pump(self.connection, other)
                    back.join()

            def log_message(self, *_: object) -> None: ...

        proxy = ThreadingHTTPServer(("127.0.0.1", 0), Tunnel)
        with running(proxy):
            yield (
                receiver,
                {
                    "HTTPS_PROXY": f"http://127.0.0.1:{proxy.server_port}",
                    "https_proxy": f"http://127.0.0.1:{proxy.server_port}",
                    "NO_PROXY": "127.0.0.1,localhost",
                    "no_proxy": "127.0.0.1,localhost",
                    "REQUESTS_CA_BUNDLE": str(folder / "certificate.pem"),
                },
            )


def pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for one in (source, sink):
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


def certificate(folder: Path, host: str) -> None:
    """Write key.pem and certificate.pem, self-signed, for `host`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName(host), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            ),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


# --- e-mail -------------------------------------------------------------------------------------


@dataclass
class SmtpReceiver:
    """Takes mail for everybody but those at refused.example."""

    port: int = 0
    recipients: list[str] = field(default_factory=list)
    mails: list[str] = field(default_factory=list)


@contextmanager
def smtp_receiver() -> Iterator[SmtpReceiver]:
    receiver = SmtpReceiver()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.say("220 test")
            while line := self.rfile.readline().decode().strip():
                verb = line[:4].upper()
                if verb == "QUIT":
                    self.say("221 bye")
                    return
                if verb == "DATA":
                    self.say("354 go on")
                    receiver.mails.append(self.content())
                elif verb == "RCPT":
                    if "@refused.example" in line:
                        self.say("550 no such person")
                        continue
                    receiver.recipients.append(line.partition("<")[2].partition(">")[0])
                self.say("250 ok")

        def content(self) -> str:
            lines = iter(self.rfile.readline, b".\r\n")
            return b"".join(lines).decode()

        def say(self, text: str) -> None:
            self.wfile.write(text.encode() + b"\r\n")

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Handler)
    receiver.port = server.server_address[1]
    with running(server):
        yield receiver


@contextmanager
def silent_server() -> Iterator[int]:
    """Accepts connections and never says a word; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]
