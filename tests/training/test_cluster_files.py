"""deploy: what the files say fits together, and their commands train as one process does."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mae.data.dataset import read_dataset_info
from mae.data.sharding.run import shard_dataset
from mae.data.validation.verdict import Verdict
from mae.files import write_json
from pipelines.processes import marked
from tests.ports import free_port
from tests.small_project import ROOT, small_params, write_images

SLURM = ROOT / "deploy/slurm.sh"
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


# --- Kubernetes ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def objects() -> dict[str, Any]:
    text = (ROOT / "deploy/kubernetes/pretrain.yaml").read_text(encoding="utf-8")
    documents = yaml.safe_load_all(text)
    return {one["kind"]: one for one in documents}


def container(objects: dict[str, Any]) -> dict[str, Any]:
    (only,) = objects["Job"]["spec"]["template"]["spec"]["containers"]
    return only


def options(command: list[str]) -> dict[str, str]:
    """Return torchrun's options of a command, without their dashes."""
    pairs = [part.lstrip("-").split("=", 1) for part in command if part.startswith("--")]
    return dict(pairs)


def test_the_job_and_its_service_name_each_other(objects: dict[str, Any]) -> None:
    job, service = objects["Job"], objects["Service"]
    name, pod = job["metadata"]["name"], job["spec"]["template"]["spec"]
    assert service["spec"]["clusterIP"] == "None"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    host, port = options(container(objects)["command"])["rdzv-endpoint"].split(":")
    assert host == f"{name}-0.{service['metadata']['name']}"  # the pod of index 0
    assert [one["port"] for one in service["spec"]["ports"]] == [int(port)]


def test_the_job_has_a_pod_for_each_node(objects: dict[str, Any]) -> None:
    spec, wanted = objects["Job"]["spec"], options(container(objects)["command"])
    least, most = (int(part) for part in wanted["nnodes"].split(":"))
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == most > least
    limits = container(objects)["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == int(wanted["nproc-per-node"])


def test_a_preempted_pod_has_the_time_to_save_and_comes_back(objects: dict[str, Any]) -> None:
    spec = objects["Job"]["spec"]
    pod = spec["template"]["spec"]
    environment = {one["name"]: one["value"] for one in container(objects)["env"]}
    assert all(isinstance(value, str) for value in environment.values())
    grace = int(environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"])
    assert pod["terminationGracePeriodSeconds"] > grace >= 300
    # A policy on failures is accepted with pods that are never restarted in place alone.
    assert pod["restartPolicy"] == "Never" and spec["backoffLimit"] > 0
    (rule,) = spec["podFailurePolicy"]["rules"]
    preempted = {"type": "DisruptionTarget", "status": "True"}
    assert (rule["action"], rule["onPodConditions"]) == ("Ignore", [preempted])


def test_every_mount_has_its_volume(objects: dict[str, Any]) -> None:
    volumes = {one["name"]: one for one in objects["Job"]["spec"]["template"]["spec"]["volumes"]}
    mounts = {one["mountPath"]: one["name"] for one in container(objects)["volumeMounts"]}
    assert set(mounts.values()) == volumes.keys()
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    assert "persistentVolumeClaim" in volumes[mounts[container(objects)["workingDir"]]]


# --- Slurm, with its programs stood in for -------------------------------------------------------

STAND_INS = {
    # As srun does: run it once for each node, and pass every signal on.
    "srun": """
for node in 0 1; do SLURM_NODEID=$node "$@" & nodes="${nodes:-} $!"; done
trap 'kill -TERM $nodes' TERM
code=0
for node in $nodes; do
    wait $node; ended=$?
    while kill -0 $node 2>/dev/null; do wait $node; ended=$?; done
    [ $ended -gt $code ] && code=$ended
done
exit $code
""",
    "scontrol": """
if [ "$1" = show ]; then echo first-node; echo second-node; else echo "$@" >> "$HERE/scontrol"; fi
""",
    "torchrun": """
trap 'touch "$HERE/saved-$SLURM_NODEID"; exit 1' TERM
echo "$@" > "$HERE/torchrun-$SLURM_NODEID"
pwd > "$HERE/where-$SLURM_NODEID"
for i in $(seq 600); do [ -e "$HERE/end" ] && exit "$(cat "$HERE/end")"; sleep 0.1; done
""",
}


class Slurm:
    """A job of slurm.sh in a checkout of its own; torchrun waits for the file `end`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in (".venv/bin", "data/shards/images", "data/validation", "mae"):
            (root / folder).mkdir(parents=True)
        (root / "data/shards/images/shard-00000.mdb").write_text("images")
        for name, body in STAND_INS.items():
            file = root / ".venv/bin" / name
            file.write_text("#!/bin/bash\n" + body)
            file.chmod(0o755)
        self.process: subprocess.Popen[bytes] | None = None

    def begin(self, **environment: str) -> "Slurm":
        given = {
            "HERE": str(self.root),
            "SLURM_JOB_ID": "42",
            "SLURM_NNODES": "2",
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_CPUS_PER_TASK": "16",
        }
        self.process = subprocess.Popen(
            ["bash", str(SLURM)], cwd=self.root, env=os.environ | given | environment
        )
        deadline = time.monotonic() + 60
        while len(list(self.root.glob("where-*"))) < 2:
            assert time.monotonic() < deadline and self.process.poll() is None
            time.sleep(0.05)
        return self

    def end(self, code: int | None = None) -> int:
        assert self.process is not None
        if code is not None:
            (self.root / "end").write_text(str(code))
        return self.process.wait(60)

    @property
    def queued_again(self) -> bool:
        file = self.root / "scontrol"
        return file.exists() and file.read_text() == "requeue 42\n"


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    job = Slurm(tmp_path)
    yield job
    job.end(0)


def test_slurm_runs_one_agent_on_each_node(slurm: Slurm, objects: dict[str, Any]) -> None:
    slurm.begin(PROCESSES="4")
    commands = [(slurm.root / f"torchrun-{node}").read_text().split() for node in (0, 1)]
    assert commands[0] == commands[1]
    given = options(commands[0])
    assert given["rdzv-endpoint"] == "first-node:29400" and given["rdzv-id"] == "42"
    assert (given["nnodes"], given["nproc-per-node"]) == ("2", "4")
    assert given.keys() == options(container(objects)["command"]).keys()
    assert commands[0][-2:] == ["-m", "pipelines.stages.pretrain"]
    assert slurm.end(0) == 0
    assert not slurm.queued_again


def test_slurm_saves_before_the_limit_and_queues_again(slurm: Slurm) -> None:
    slurm.begin()
    assert slurm.process is not None
    slurm.process.send_signal(signal.SIGUSR1)
    assert slurm.end() != 0
    assert (slurm.root / "saved-0").exists() and (slurm.root / "saved-1").exists()
    assert slurm.queued_again


def test_slurm_does_not_repeat_what_failed(slurm: Slurm) -> None:
    slurm.begin()
    assert slurm.end(5) == 5
    assert not slurm.queued_again


def test_slurm_copies_the_shards_to_the_nodes(slurm: Slurm, tmp_path: Path) -> None:
    slurm.begin(LOCAL=str(tmp_path / "scratch"))
    here = Path((slurm.root / "where-0").read_text().strip())
    assert here == tmp_path / "scratch/maestro-42"
    shard = here / "data/shards/images/shard-00000.mdb"
    assert shard.read_text() == "images" and not shard.resolve().is_relative_to(slurm.root / "data")
    for shared in ("runs", "artifacts", "mae", "data/validation"):
        assert (here / shared).resolve() == slurm.root / shared
    assert slurm.end(0) == 0


def test_slurm_asks_for_the_time_that_saving_gets() -> None:
    text = SLURM.read_text(encoding="utf-8")
    assert subprocess.run(["bash", "-n", str(SLURM)]).returncode == 0
    (warning,) = [line for line in text.splitlines() if line.startswith("#SBATCH --signal=B:USR1@")]
    grace = text.split("TORCH_ELASTIC_SHUTDOWN_TIMEOUT=")[1].split()[0]
    assert int(grace) < int(warning.partition("@")[2])


# --- the command itself --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the pretraining stage can run."""
    root = tmp_path_factory.mktemp("project")
    write_images(root / "source")
    content = small_params(root / "source").model_dump(mode="json", by_alias=True)
    content["pretrain"] |= {"epochs": 2, "batch": 8, "precision": "fp32"}
    content["runtime"]["observe"]["every_epochs"] = 1
    (root / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    shard_dataset("images", small_params(root / "source").data, 0, root / "data/shards/images")
    fingerprint = read_dataset_info(root / "data/shards/images").fingerprint
    verdict = Verdict.of({"images": fingerprint}, [])
    write_json(root / "data/validation/verdict.json", verdict.to_dict())
    return root


def run_in(folder: Path, command: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    known = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder)} | environment
    return subprocess.Popen(
        command, cwd=folder, env=known, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True
    )


def wait_for(processes: list[subprocess.Popen[str]]) -> None:
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(said)


def on_loopback(objects: dict[str, Any], port: int) -> list[str]:
    """Return the job's command, for one process on each of the nodes, which are all here."""
    places = {"--nproc-per-node": "1", "--rdzv-endpoint": f"localhost:{port}"}
    command = [sys.executable, "-m", "torch.distributed.run"]
    for part in container(objects)["command"][1:]:
        name = part.split("=", 1)[0]
        command.append(f"{name}={places[name]}" if name in places else part)
    return command


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_two_nodes_learn_what_one_process_learns(
    project: Path, objects: dict[str, Any], tmp_path: Path, sharding: str
) -> None:
    """The job's own command on the loopback: two agents, of one gloo process each."""
    for name in ("one", "two"):
        shutil.copytree(project, tmp_path / name)
    params = tmp_path / "two/params.yaml"
    params.write_text(params.read_text().replace("sharding: ddp", f"sharding: {sharding}"))
    assert f"sharding: {sharding}" in params.read_text()
    command = on_loopback(objects, free_port())
    given = {one["name"]: one["value"] for one in container(objects)["env"]} | ONE_THREAD
    wait_for([run_in(tmp_path / "two", command, given) for _ in range(2)])
    alone = [sys.executable, "-m", "pipelines.stages.pretrain"]
    wait_for([run_in(tmp_path / "one", alone, ONE_THREAD)])
    one, two = (
        load_file(tmp_path / name / "artifacts/pretrain/autoencoder.safetensors")
        for name in ("one", "two")
    )
    assert one.keys() == two.keys()
    for name in one:
        pair = (one[name], two[name])
        if name.endswith("attn.qkv.bias"):
            # The bias of the keys shifts all scores of a query alike: its gradient is rounding.
            pair = tuple(torch.cat([bias.chunk(3)[0], bias.chunk(3)[2]]) for bias in pair)
        torch.testing.assert_close(*pair, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.slow
def test_the_other_node_goes_on_when_one_is_lost(
    project: Path, objects: dict[str, Any], tmp_path: Path
) -> None:
    """One of two agents is killed, with the process it started, and never comes back."""
    shutil.copytree(project, root := tmp_path / "project")
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["pretrain"]["epochs"] = 400
    params["runtime"]["observe"]["every_epochs"] = 0
    params["runtime"]["checkpoint_minutes"] = 0.01
    (root / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    port = free_port()
    command = [
        part.replace("last_call_timeout=120", "last_call_timeout=5")
        for part in on_loopback(objects, port)
    ]
    given = {one["name"]: one["value"] for one in container(objects)["env"]} | ONE_THREAD
    first = run_in(root, command, given)
    until(lambda: accepts(port))  # it is the one at which the others meet
    second = run_in(root, command, given | {"LOST": str(root)})
    until(lambda: [one for one in root.rglob("checkpoints/step-*") if int(one.name[5:]) > 0])
    for process in marked(LOST=str(root)):
        process.kill()
    second.communicate()
    said = first.communicate(timeout=500)[0]
    assert first.returncode == 0, said
    assert "continues after step" in said
    assert (root / "artifacts/pretrain/encoder.safetensors").exists()


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("localhost", port), timeout=5).close()
    except OSError:
        return False
    return True


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
