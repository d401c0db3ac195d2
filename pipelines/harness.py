"""What surrounds every stage (parameters, logging, exit codes, time, memory) and other programs.

For a stage, at the end of pipelines/stages/NAME.py:

    if __name__ == "__main__":
        run_stage("NAME", main)
"""

import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from mae.errors import Interrupted, MaestroError
from mae.params import Params, read_params
from pipelines.edits import Stated, demand_unedited, stated
from pipelines.lifeline import end_offspring, end_with_dvc

LOG = logging.getLogger("pipelines.stage")


def run_stage(name: str, main: Callable[[Params, list[str]], None]) -> NoReturn:
    """Call `main(params, arguments)` and leave with the exit code that says how it went.

    0 done, 2 parameters, 3 data, 4 checkpoint, 5 diverged, 6 parameters edited meanwhile, 75
    interrupted (run it again), each with one sentence on stderr; 1 for anything unforeseen, with
    its traceback. SIGTERM, SIGINT and SIGUSR1 raise KeyboardInterrupt in `main`, unless it handles
    them.
    """
    arguments = sys.argv[1:]
    set_up_logging()
    for asking in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(asking, signal.default_int_handler)
    started = time.monotonic()
    code = _run(main, arguments)
    end_offspring()
    LOG.info(
        "%s %s in %.1f s, peak memory %d MB",
        " ".join([name, *arguments]),
        "done" if code == 0 else f"ended with code {code}",
        time.monotonic() - started,
        _peak_memory_mb(),
    )
    sys.exit(code)


def leave_with(main: Callable[[], None]) -> NoReturn:
    """Call `main` as a program: a MaestroError becomes one message and its exit code."""
    set_up_logging()
    try:
        main()
    except MaestroError as error:
        LOG.error("%s", error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        LOG.error("interrupted: run the same command again to continue")
        sys.exit(Interrupted.exit_code)
    sys.exit(0)


def set_up_logging() -> None:
    """Log to stderr in one format: our own messages from INFO, those of libraries from WARNING."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.WARNING,
        format="%(asctime)s %(levelname)-7s %(message)s",
        datefmt="%H:%M:%S",
        force=True,
    )
    for own in ("mae", "pipelines"):
        logging.getLogger(own).setLevel(logging.INFO)
    logging.captureWarnings(True)


def _run(main: Callable[[Params, list[str]], None], arguments: list[str]) -> int:
    try:
        end_with_dvc()
        before = _what_dvc_records()
        main(read_params(), arguments)
        demand_unedited(before, _what_dvc_records())
    except KeyboardInterrupt:
        LOG.error("interrupted: run the same command again to continue")
        return Interrupted.exit_code
    except MaestroError as error:
        LOG.error("%s", error)
        return error.exit_code
    except Exception:
        LOG.exception("unforeseen fault")
        return 1
    return 0


def _what_dvc_records() -> Stated:
    """Return the parameters that DVC records when this stage ends; none where it does not wait.

    A process among several of a stage leaves the check to the one that DVC has started.
    """
    stage = os.environ.get("DVC_STAGE")
    return {} if stage is None or "RANK" in os.environ else stated(Path(), stage)


def _peak_memory_mb() -> int:
    """Return the largest resident set of this process or of any child it waited for, in MB."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(one).ru_maxrss for one in who) * 1024 // 1_000_000
