"""A flow run ends with the worker that started it, even where the worker read its output."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.pipelines.project import ROOT, wait_for

RUN = """
import signal, sys, time
from pathlib import Path
from pipelines.lifeline import end_with_worker

def asked(number, frame):
    print("a line that nobody reads", flush=True)
    print("nor this", file=sys.stderr, flush=True)
    Path("asked").touch()
    if "stubborn" not in sys.argv:
        sys.exit(0)

signal.signal(signal.SIGTERM, asked)
end_with_worker(grace=1.0)
Path("ready").touch()
while True:
    time.sleep(0.1)
"""
WORKER = """
import os, subprocess, sys
environment = {**os.environ, "PREFECT__FLOW_RUN_ID": "a-run"}
run = subprocess.Popen(
    [sys.executable, "run.py", *sys.argv[1:]],
    env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
)
with open("pid", "w") as file:
    file.write(str(run.pid))
run.wait()
"""


@pytest.mark.parametrize("manner", ["polite", "stubborn"])
def test_a_run_ends_with_its_worker(tmp_path: Path, manner: str) -> None:
    (tmp_path / "run.py").write_text(RUN)
    (tmp_path / "worker.py").write_text(WORKER)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PREFECT__FLOW_RUN_ID", None)
    worker = subprocess.Popen([sys.executable, "worker.py", manner], cwd=tmp_path, env=environment)
    wait_for((tmp_path / "ready").exists, 120)
    pid = int((tmp_path / "pid").read_text())
    try:
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        wait_for(lambda: not psutil.pid_exists(pid), 120)
        assert (tmp_path / "asked").exists()
    finally:
        if psutil.pid_exists(pid):
            os.kill(pid, signal.SIGKILL)


def test_what_nobody_started_so_is_left_alone(tmp_path: Path) -> None:
    program = "from pipelines.lifeline import end_with_worker as e; e(); import threading; "
    program += "assert threading.active_count() == 1"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PREFECT__FLOW_RUN_ID", None)
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=120)
