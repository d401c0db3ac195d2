"""Where work is done side by side: threads, processes, a Dask or a Ray cluster.

Each gives a concurrent.futures.Executor and is gone with this process, however that ends. Dask
and Ray are extras and are imported where they are asked for.
"""

import logging
import multiprocessing
import os
import select
import signal
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager

from mae.data.sharding.ray_cluster import ray_at_work
from mae.data.sharding.started import Started, missing, silent
from mae.errors import ParamsError
from mae.params import ExecutorParams

LOOPBACK = "127.0.0.1"
_SECONDS_TO_ANSWER = 10


@contextmanager
def started(params: ExecutorParams, count: int) -> Iterator[Started]:
    """Start what `params` name, with `count` workers unless it is a cluster that has its own.

    Raises ParamsError when its package is not installed or nothing answers at its address.
    """
    if params.address and params.kind in ("threads", "processes"):
        raise ParamsError(
            f"params.yaml: runtime.executor.address is for dask and ray, and kind is {params.kind}"
        )
    starts = {"threads": _threads, "processes": _processes, "dask": _dask, "ray": ray_at_work}
    with starts[params.kind](params.address, count) as one:
        yield one


@contextmanager
def _threads(_: str | None, count: int) -> Iterator[Started]:
    pool = ThreadPoolExecutor(count, "sharding")
    try:
        yield Started(pool, count)
    finally:
        pool.shutdown(cancel_futures=True)


# --- processes --------------------------------------------------------------------------------


@contextmanager
def _processes(_: str | None, count: int) -> Iterator[Started]:
    # Not fork: a child would inherit the locks of this process's threads.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mae.data.sharding.run"])
    pool = ProcessPoolExecutor(
        count, mp_context=context, initializer=_end_with, initargs=(os.getpid(),)
    )
    try:
        yield Started(pool, count)
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with(process: int) -> None:
    """Let this process end as soon as another, the one it works for, is gone.

    The processes of a forkserver are its children, so the kernel's own signal on a parent's death
    would tell of the wrong one.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        lifeline = os.pidfd_open(process)
    except ProcessLookupError:
        os._exit(1)
    threading.Thread(target=_wait_and_exit, args=(lifeline,), daemon=True).start()


def _wait_and_exit(lifeline: int) -> None:
    select.select([lifeline], [], [])
    os._exit(1)


# --- Dask -------------------------------------------------------------------------------------


@contextmanager
def _dask(address: str | None, count: int) -> Iterator[Started]:
    try:
        import dask
        from distributed import Client, LocalCluster
        from distributed.scheduler import KilledWorker
    except ImportError:
        raise missing("dask") from None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sending large graph")  # a shard's records
        if address is None:
            # Who lacks memory once lacks it again: as with processes, no second try.
            with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
                cluster = LocalCluster(
                    n_workers=count,
                    threads_per_worker=1,
                    host=LOOPBACK,
                    dashboard_address=f"{LOOPBACK}:0",
                    scheduler_kwargs={"dashboard": False},
                    silence_logs=logging.CRITICAL,  # what goes wrong comes as an exception
                    memory_limit=0,  # the kernel decides who takes too much
                    preload="import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)",
                )
            with cluster, Client(cluster) as client:
                yield Started(client.get_executor(pure=False), count, (KilledWorker,))
            return
        try:
            client = Client(address, timeout=_SECONDS_TO_ANSWER)
        except (OSError, ValueError) as error:
            raise silent("Dask scheduler", address, error) from None
        with client:
            slots = sum(client.nthreads().values())
            yield Started(client.get_executor(pure=False), slots, (KilledWorker,))
