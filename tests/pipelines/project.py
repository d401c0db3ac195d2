"""Small DVC projects whose stages run in the real harness and only wait and write a file."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from pipelines.processes import marked

ROOT = Path(__file__).parents[2]
MARK = "MAESTRO_TEST"

STAGE = """
import subprocess, sys, time
from pathlib import Path
from mae import errors
from pipelines.harness import run_stage

def main(params, arguments):
    out, seconds, *behaviour = arguments
    Path("running-" + out).write_text(str(__import__("os").getpid()))
    for what in behaviour:
        if what == "offspring":
            subprocess.Popen(["sleep", "300"], start_new_session=True)
        elif what == "crash":
            raise RuntimeError("a bug")
        elif what == "suicide":
            __import__("os").kill(__import__("os").getpid(), 9)
        elif what == "once":  # only the first process of this stage fails
            first = not Path("runs/failed").exists()
            Path("runs").mkdir(exist_ok=True)
            Path("runs/failed").touch()
            if first:
                raise RuntimeError("a cosmic ray")
        elif what == "full":
            Path("/dev/full").write_text("x")
        elif what == "metrics":
            Path("metrics").mkdir(exist_ok=True)
            Path("metrics/" + out + ".json").write_text('{"accuracy": 0.75, "by": {"k": 2}}')
            Path("picture.png").write_bytes(b"PNG as it were")
            Path("page").mkdir(exist_ok=True)
            Path("page/index.html").write_text("<p>report</p>")
        elif what == "steps":
            for step in range(1, 5):
                print("%s: step %d of 4, loss 0.1" % (out, step), flush=True)
                time.sleep(0.3)
        else:
            raise getattr(errors, what)(f"why {what} was raised")
    time.sleep(float(seconds))
    Path(out).write_text("made")

run_stage("stage", main)
"""


class Project:
    """A folder with dvc.yaml, in git, whose processes can be told from all others."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.mark = str(root)
        self.environment = {
            **os.environ,
            MARK: self.mark,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PREFECT_HOME": str(root.parent / "prefect"),
        }
        self.environment.pop("PREFECT_API_URL", None)

    def stages(self, text: str) -> None:
        (self.root / "dvc.yaml").write_text(text, encoding="utf-8")

    def commit(self, message: str = "change") -> None:
        self.run("git", "add", "-A")
        self.run("git", "commit", "-qm", message)

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command,
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def python(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, *arguments, check=check)

    def start(self, *arguments: str, log: Path | None = None) -> subprocess.Popen[bytes]:
        output = log.open("wb") if log else subprocess.DEVNULL
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.root,
            env=self.environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )

    def alive(self) -> list[psutil.Process]:
        return marked(**{MARK: self.mark})

    def end_all(self) -> None:
        for process in self.alive():
            process.send_signal(signal.SIGKILL)


def wait_for(condition: Callable[[], object], seconds: float = 60) -> object:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)
    return found
