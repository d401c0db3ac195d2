"""What the flow costs beside `dvc repro`, in seconds a stage.

    python -m benchmarks.orchestration [--stages 8] [--rounds 3] [--json PATH]

A small project in a chain of stages that do next to nothing, each a process in the real harness.
In turns: `dvc repro`, which does all stages in one process of its own; the flow without a server,
and the flow against a Prefect server on this machine, which each start a dvc for every stage.
Measured from the start of the command to its end, once with all stages to run and once with
nothing to do. The medians count; "added" is over `dvc repro`, divided by the number of stages.
Beside it stands the processor time of the command and all it starts (not of the server), which
other work on the machine disturbs less.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from mae.files import write_json
from mae.provenance import hardware
from tests.pipelines.project import ROOT, STAGE, Project
from tests.pipelines.servers import PrefectServer

FLOW = ("-m", "pipelines.flows.train")
REFERENCE = "dvc repro"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stages", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where to write the results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="maestro-orchestration-") as folder:
        results = _measured(Path(folder), options.stages, options.rounds)
    for result in results:
        print(
            f"{result['contender']:<24} {result['work']:<8} "
            f"{result['seconds']:>7.1f} s, added per stage {result['added_per_stage']:+.2f} s; "
            f"processor {result['cpu']:>6.1f} s, {result['cpu_added_per_stage']:+.2f} s"
        )
    if options.json:
        content = {
            "hardware": hardware(torch.device("cpu")),
            "load_average": os.getloadavg(),
            "stages": options.stages,
            "rounds": options.rounds,
            "results": results,
        }
        write_json(options.json, content)


def _measured(folder: Path, stages: int, rounds: int) -> list[dict[str, Any]]:
    home = folder / "prefect"
    home.mkdir()
    server = PrefectServer(home)
    try:
        server.start()
        contenders = {
            REFERENCE: ("-m", "dvc", "repro"),
            "flow": FLOW,
            "flow against a server": (*FLOW, "--server", server.url),
        }
        projects = {name: _project(folder / f"{i}", stages) for i, name in enumerate(contenders)}
        taken: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for turn in range(rounds + 1):
            for name, command in contenders.items():
                (projects[name].root / "version").write_text(str(turn))
                for work in ("all", "nothing"):
                    times = _timed(projects[name], command)
                    if turn:  # the first fills caches
                        taken.setdefault((name, work), []).append(times)
    finally:
        server.kill()
    return [_result(name, work, taken, stages) for name, work in taken]


def _result(
    name: str, work: str, taken: dict[tuple[str, str], list[tuple[float, float]]], stages: int
) -> dict[str, Any]:
    wall, cpu = map(statistics.median, zip(*taken[name, work], strict=True))
    least_wall, least_cpu = map(statistics.median, zip(*taken[REFERENCE, work], strict=True))
    return {
        "contender": name,
        "work": work,
        "seconds": round(wall, 2),
        "added_per_stage": round((wall - least_wall) / stages, 3),
        "cpu": round(cpu, 2),
        "cpu_added_per_stage": round((cpu - least_cpu) / stages, 3),
        "rounds": [[round(value, 2) for value in pair] for pair in taken[name, work]],
    }


def _timed(project: Project, command: tuple[str, ...]) -> tuple[float, float]:
    """Return the seconds, and those of processors, that a command takes."""
    started, before = time.perf_counter(), os.times()
    project.python(*command)
    after = os.times()
    cpu = after.children_user + after.children_system
    cpu -= before.children_user + before.children_system
    return time.perf_counter() - started, cpu


def _project(folder: Path, stages: int) -> Project:
    """A chain of stages, the first of which depends on a file that can be changed."""
    root = folder / "project"
    root.mkdir(parents=True)
    project = Project(root)
    project.run("git", "init", "-q")
    project.python("-m", "dvc", "init", "-q")
    (root / ".dvc/config").write_bytes((ROOT / ".dvc/config").read_bytes())
    (root / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    (root / "stage.py").write_text(STAGE, encoding="utf-8")
    lines = ["stages:"]
    before = "version"
    for number in range(stages):
        # Each tells its turn on, or DVC would find the rest unchanged.
        command = f"python stage.py s{number} 0 && cat {before} >> s{number}"
        lines.append(f"  s{number}: {{cmd: {command}, deps: [{before}], outs: [s{number}]}}")
        before = f"s{number}"
    project.stages("\n".join(lines) + "\n")
    return project


if __name__ == "__main__":
    main()
