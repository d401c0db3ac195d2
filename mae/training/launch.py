"""More than one process: a stage starts itself again under torchrun's agent, and waits."""

import ctypes
import logging
import os
import signal
import sys
import tempfile
from typing import TYPE_CHECKING, Any

from mae.errors import (
    CheckpointError,
    DataError,
    DivergedError,
    Interrupted,
    MaestroError,
    ParamsError,
)
from mae.params import LaunchParams, PretrainParams

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
    from torch.distributed.launcher.api import LaunchConfig

LOG = logging.getLogger(__name__)

# What a process may take to save its state once it was asked to stop.
GRACE_SECONDS = 600
_SIGNALS = "SIGTERM,SIGINT,SIGUSR1"
# Starting again does not help against these: they would come again.
_LASTING = {e.exit_code for e in (ParamsError, DataError, CheckpointError, DivergedError)}


class ProcessFailed(MaestroError):
    """A process of a run ended badly; its exit code is passed on."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def launch_if_wanted(
    launch: LaunchParams,
    module: str,
    arguments: list[str],
    *,
    device: str = "auto",
    learns: PretrainParams | None = None,
) -> bool:
    """Run `python -m module` in all wanted processes; False when this process is to do the work.

    That is the case for a single process, and inside one that torchrun started, be it by this or
    by a cluster's command. device: runtime.device. learns: what cuts its batches among them.
    Raises ParamsError before anything is started, ProcessFailed with the exit code of the process
    that explains the failure, and Interrupted when a signal asked this process to stop: the
    others have been asked too, and have ended.
    """
    if "RANK" in os.environ:
        _end_with_the_agent()
        return False
    processes = launch.processes * launch.nodes
    if processes == 1:
        return False
    _check_devices(launch, device)
    if learns is not None:
        check_shares(module.rpartition(".")[2], learns.batch, processes, learns.accumulate)
    # Processes share the cores; torch would give each of them all.
    threads = max(1, (os.cpu_count() or 1) // launch.processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = _SIGNALS
    # Or processes that start again may find, in the agent's store, the addresses of the dead
    # (pytorch#135712).
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    signal.signal(signal.SIGUSR1, signal.default_int_handler)  # until the agent takes over
    LOG.info("%s: starts %d processes", module, launch.processes)
    with tempfile.TemporaryDirectory(prefix="maestro-launch-") as logs:
        _run(_config(launch, logs), module, arguments)
    return True


def check_shares(title: str, batch: int, processes: int, accumulate: int = 1) -> None:
    """Raise ParamsError when a batch cannot be cut into equal parts."""
    share = processes * accumulate
    if batch % share:
        raise ParamsError(
            f"{title}: a batch of {batch} images cannot be cut into {processes} processes x "
            f"{accumulate} micro-batches: choose a multiple of {share}"
        )


def _check_devices(launch: LaunchParams, device: str) -> None:
    import torch

    if launch.nodes > 1 and launch.rendezvous is None:
        raise ParamsError(
            f"runtime.launch: {launch.nodes} nodes need a rendezvous, as in 'host-1:29400'"
        )
    gpus = 0 if device == "cpu" else torch.cuda.device_count()
    if device == "cuda" and not gpus:
        raise ParamsError("runtime.device is cuda but torch sees no GPU: use auto or cpu")
    if 0 < gpus < launch.processes:
        raise ParamsError(
            f"runtime.launch: {launch.processes} processes on a node with {gpus} GPUs: lower "
            "`processes` (it counts those of one node), or set runtime.device to cpu"
        )


# --- the agent ----------------------------------------------------------------------------------


def _config(launch: LaunchParams, logs: str) -> "LaunchConfig":
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint
    from torch.distributed.launcher.api import LaunchConfig

    # Port 0: a free port of this machine, so that two runs beside each other never meet.
    endpoint = launch.rendezvous or "localhost:0"
    try:
        parse_rendezvous_endpoint(endpoint, default_port=29400)
    except ValueError as error:
        raise ParamsError(
            f"runtime.launch.rendezvous: {error}; write it as host:port, as in 'host-1:29400'"
        ) from None
    return LaunchConfig(
        min_nodes=launch.nodes,
        max_nodes=launch.nodes,
        nproc_per_node=launch.processes,
        run_id="maestro",
        rdzv_backend="c10d",
        rdzv_endpoint=endpoint,
        # Nodes do not start at the same moment.
        rdzv_configs={"read_timeout": 300},
        max_restarts=launch.restarts,
        monitor_interval=0.5,
        logs_specs=DefaultLogsSpecs(log_dir=logs),
    )


def _run(config: "LaunchConfig", module: str, arguments: list[str]) -> None:
    """As torch's elastic_launch, with an agent that knows what our exit codes mean."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.rendezvous import RendezvousError

    agent, rendezvous = _agent(config, module, arguments)
    try:
        result = agent.run()
    except SignalException as error:
        raise Interrupted(
            f"{module}: all processes stopped by {error.sigval.name}: run the same command again "
            "to continue"
        ) from None
    except RendezvousError as error:
        raise ProcessFailed(
            f"{module}: the {config.max_nodes} nodes did not come together at "
            f"{config.rdzv_endpoint} ({error}): see whether all were started, with the same "
            "runtime.launch, and reach that host",
            1,
        ) from None
    else:
        rendezvous.shutdown()
    if result is None:
        raise ProcessFailed(f"{module}: another node has given up: see its lines", 1)
    if result.is_failed():
        rank, failure = _telling(result.failures)
        if failure.exitcode == Interrupted.exit_code:
            raise Interrupted(f"{module}: all processes were stopped: run it again to continue")
        raise ProcessFailed(
            f"process {rank} of {module} ended with {_ending(failure)}: see its lines above",
            failure.exitcode if failure.exitcode > 0 else 1,
        )


def _agent(config: "LaunchConfig", module: str, arguments: list[str]) -> tuple[Any, Any]:
    """Return an agent that restarts what crashed, never what ended on purpose."""
    from torch.distributed.elastic.agent.server import WorkerSpec
    from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.rendezvous import RendezvousParameters
    from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

    class Agent(LocalElasticAgent):
        def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
            result = super()._monitor_workers(worker_group)
            if result.is_failed():
                _, failure = _telling(result.failures)
                if failure.exitcode in {*_LASTING, Interrupted.exit_code}:
                    self._remaining_restarts = 0
                elif self._remaining_restarts:
                    LOG.warning(
                        "%s: a process ended with %s: all start again from the last checkpoint",
                        module,
                        _ending(failure),
                    )
            return result

    rendezvous = get_rendezvous_handler(
        RendezvousParameters(
            backend=config.rdzv_backend,
            endpoint=config.rdzv_endpoint,
            run_id=config.run_id,
            min_nodes=config.min_nodes,
            max_nodes=config.max_nodes,
            **config.rdzv_configs,
        )
    )
    spec = WorkerSpec(
        role="maestro",
        local_world_size=config.nproc_per_node,
        entrypoint=sys.executable,
        args=("-m", module, *arguments),
        rdzv_handler=rendezvous,
        max_restarts=config.max_restarts,
        monitor_interval=config.monitor_interval,
        numa_options=config.numa_options,
    )
    assert config.logs_specs is not None
    agent = Agent(spec, config.logs_specs)
    # What it waits after a signal before it kills; torch before 2.12 knows only 30 s.
    agent._shutdown_timeout = GRACE_SECONDS
    return agent, rendezvous


def _telling(failures: "dict[int, ProcessFailure]") -> "tuple[int, ProcessFailure]":
    """Return the rank and the failure that explain the others.

    When one process says why it ends, the rest lose their connection or are asked to stop.
    """

    def place(rank: int) -> tuple[int, int]:
        code = failures[rank].exitcode
        asked = code in (Interrupted.exit_code, -signal.SIGTERM)
        return 0 if code in _LASTING else 2 if asked else 1, failures[rank].timestamp

    rank = min(sorted(failures), key=place)
    return rank, failures[rank]


def _ending(failure: "ProcessFailure") -> str:
    if failure.exitcode < 0:
        return f"signal {signal.Signals(-failure.exitcode).name}"
    return f"code {failure.exitcode}"


def _end_with_the_agent() -> None:
    """Be sent SIGTERM when torchrun's agent dies: nothing else would tell a process of it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, int(signal.SIGTERM))
