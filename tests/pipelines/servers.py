"""Real servers on the loopback address: Prefect's, which can die and come back, and PostgreSQL."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from tests.pipelines.project import wait_for
from tests.ports import free_port

START_SECONDS = 240


class PrefectServer:
    """A Prefect server with a database of its own; started again, it knows what it knew."""

    def __init__(self, home: Path, **environment: str) -> None:
        self._home, self._port = home, free_port()
        self._environment = {
            **os.environ,
            "PREFECT_HOME": str(home),
            "DO_NOT_TRACK": "1",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            **environment,
        }
        self._environment.pop("PREFECT_API_URL", None)
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{self._port}/api"

    def start(self) -> None:
        command = [sys.executable, "-m", "prefect", "server", "start", "--no-ui"]
        command += ["--host", "127.0.0.1", "--port", str(self._port)]
        with (self._home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
        wait_for(self._answers, START_SECONDS)

    def kill(self) -> None:
        """End it as the kernel does when memory runs out."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._home / "log").read_text()
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False


def api(url: str, path: str, content: dict[str, Any] | None = None) -> Any:
    """Ask the server, and again while its SQLite is locked (503), as Prefect's own client does."""
    for _ in range(10):
        try:
            return _ask(url, path, content)
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise AssertionError(f"{path}: {error.code} {error.read().decode()}") from None
            time.sleep(1)
    raise TimeoutError(f"{url}{path} answers 503 all the time")


def _ask(url: str, path: str, content: dict[str, Any] | None) -> Any:
    request = urllib.request.Request(
        url + path,
        data=None if content is None else json.dumps(content).encode(),
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def runs(url: str, flow: str = "train") -> list[dict[str, Any]]:
    """Return the runs of a flow, the newest first."""
    chosen = {"flows": {"name": {"any_": [flow]}}, "sort": "EXPECTED_START_TIME_DESC"}
    return api(url, "/flow_runs/filter", chosen)


def states_of_tasks(url: str, run: str) -> dict[str, str]:
    """Return stage -> name of its state, of one flow run."""
    found = api(url, "/task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
    return {one["name"]: one["state"]["name"] for one in found}


def artifacts(url: str, run: str) -> dict[str, Any]:
    """Return key -> content of the artifacts of one flow run."""
    found = api(url, "/artifacts/filter", {"flow_runs": {"id": {"any_": [run]}}})
    return {one["key"]: one["data"] for one in found}


class Postgres:
    """A PostgreSQL with an empty database, as a user that it agrees to run as."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, free_port()
        folder.mkdir()
        # Not root, and with a folder that this user can reach whoever owns those above.
        self._as_user: list[str] = []
        if os.geteuid() == 0:
            folder.chmod(0o755)
            shutil.chown(folder, "nobody")
            user = ["--reuid=nobody", "--regid=nogroup", "--clear-groups"]
            self._as_user = ["setpriv", *user]
        self.url = f"postgresql+asyncpg://prefect@127.0.0.1:{self._port}/prefect"
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def missing() -> str:
        """Return why there can be none here; empty where there can."""
        if _postgres_program("postgres") is None:
            return "PostgreSQL is not installed"
        if os.geteuid() == 0 and shutil.which("setpriv") is None:
            return "PostgreSQL does not run as root, and there is no setpriv"
        return ""

    def start(self) -> None:
        data = self._folder / "data"
        self._run("initdb", "--auth=trust", "--username=prefect", "-D", str(data))
        command = [*self._as_user, str(_postgres_program("postgres")), "-D", str(data)]
        command += ["-h", "127.0.0.1", "-p", str(self._port), "-k", str(self._folder)]
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, cwd=self._folder
            )
        wait_for(lambda: self._ready() or self._process.poll() is not None, START_SECONDS)
        assert self._process.poll() is None, (self._folder / "log").read_text()
        self._run("createdb", *self._where(), "prefect")

    def ask(self, query: str) -> str:
        done = self._run("psql", *self._where(), "-d", "prefect", "-Atc", query)
        return done.stdout.strip()

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)  # its "fast shutdown"
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                for child in psutil.Process(self._process.pid).children(recursive=True):
                    child.kill()
                self._process.kill()
                self._process.wait()

    def _where(self) -> list[str]:
        return ["-h", "127.0.0.1", "-p", str(self._port), "-U", "prefect"]

    def _ready(self) -> bool:
        return self._run("pg_isready", *self._where(), check=False).returncode == 0

    def _run(
        self, name: str, *arguments: str, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*self._as_user, str(_postgres_program(name)), *arguments],
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
            cwd=self._folder,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done


def _postgres_program(name: str) -> Path | None:
    """Return a program of PostgreSQL; Debian keeps them where no PATH leads."""
    server = shutil.which("postgres")
    folders = [Path(server).resolve().parent] if server else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((path for folder in folders if (path := folder / name).exists()), None)
