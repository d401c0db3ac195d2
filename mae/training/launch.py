"""More than one process: a stage starts itself again under torchrun, and waits."""

import logging
import os
import sys

from mae.errors import Interrupted, MaestroError, ParamsError
from mae.params import LaunchParams

LOG = logging.getLogger(__name__)


class ProcessFailed(MaestroError):
    """A process of a run ended badly; its exit code is passed on."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def launch_if_wanted(launch: LaunchParams, module: str, arguments: list[str]) -> bool:
    """Run `python -m module` in all wanted processes; False when this process is to do the work.

    That is the case for a single process, and inside one that torchrun started. Raises
    ProcessFailed with the exit code of the process that failed first, Interrupted when a signal
    asked this process to stop: the others have been asked too, and have ended.
    """
    if "RANK" in os.environ or launch.processes * launch.nodes == 1:
        return False
    if launch.nodes > 1 and launch.rendezvous is None:
        raise ParamsError(
            f"runtime.launch: {launch.nodes} nodes need a rendezvous, as in 'host-1:29400'"
        )
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Processes share the cores; torch would give each of them all.
    threads = max(1, (os.cpu_count() or 1) // launch.processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    config = LaunchConfig(
        min_nodes=launch.nodes,
        max_nodes=launch.nodes,
        nproc_per_node=launch.processes,
        run_id="maestro",
        rdzv_backend="c10d",
        # Port 0: a free port of this machine, so that two runs beside each other never meet.
        rdzv_endpoint=launch.rendezvous or "localhost:0",
        max_restarts=0,
        monitor_interval=0.5,
    )
    LOG.info("%s: starts %d processes", module, launch.processes)
    try:
        elastic_launch(config, sys.executable)("-m", module, *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise ProcessFailed(
            f"process {rank} of {module} ended with code {failure.exitcode}: see its lines above",
            failure.exitcode if failure.exitcode > 0 else 1,
        ) from None
    except SignalException as error:
        raise Interrupted(
            f"{module}: all processes stopped by {error.sigval.name}: run the same command again "
            "to continue"
        ) from None
    return True
