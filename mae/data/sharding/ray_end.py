"""Be the end of a Ray on this machine: python ray_end.py FOLDER, with its RAY_AUTH_TOKEN.

Waits until standard input closes, which it does when whoever started Ray is done or has been
killed; then kills what Ray left (its agents outlive a killed driver) and removes its folder.
Stands alone: it is started by its path, so that it costs no imports.
"""

import os
import shutil
import signal
import sys
import time

import psutil


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdin.read()
    while left := _members(os.environ["RAY_AUTH_TOKEN"]):
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.05)
    shutil.rmtree(sys.argv[1], ignore_errors=True)


def _members(token: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get("RAY_AUTH_TOKEN") == token
            if ours and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


if __name__ == "__main__":
    main()
