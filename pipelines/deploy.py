"""Tells a Prefect server all it has to know of this project; again, it changes what has changed.

    python -m pipelines.deploy                                  a pool for workers on this machine
    python -m pipelines.deploy --pool docker --image IMAGE      a container for each run
    python -m pipelines.deploy --pool kubernetes --image IMAGE  a Job for each run
    python -m pipelines.deploy --cron "0 3 * * 1" --timezone Europe/London
    python -m pipelines.deploy --dry-run                        what it would do

Makes the work pool, the deployments of prefect.yaml in it (schedule, trigger, one run at a time),
and the automations of `retrain.notify` and of runs that are lost. A project has its deployments in
one pool: to name another one moves them.
"""

import argparse
import copy
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from mae.errors import MaestroError
from mae.params import read_params
from pipelines.flows.server import LOCAL, use_server
from pipelines.harness import leave_with

Kind = Literal["process", "docker", "kubernetes"]
HEARTBEAT = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"  # seconds, 30 at least
PREFECT_DEPLOY = (sys.executable, "-m", "prefect", "--no-prompt", "deploy")
EVENT = "maestro.data.arrived"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.deploy", description="Deploy to a Prefect server."
    )
    parser.add_argument("--server", metavar="URL", help=f"Prefect server ({LOCAL})")
    parser.add_argument("--pool", choices=get_args(Kind), default="process", help="(process)")
    parser.add_argument("--root", type=Path, default=Path(), help="folder with prefect.yaml")
    parser.add_argument("--name", help="of the deployments (the folder's)")
    parser.add_argument("--image", help="for docker and kubernetes, where not prefect.yaml's")
    when = parser.add_mutually_exclusive_group()
    when.add_argument("--cron", help="when to retrain, such as '0 3 * * 1'")
    when.add_argument("--no-schedule", action="store_true", help="retrain when asked to, alone")
    parser.add_argument("--timezone", default="UTC", help="of --cron (UTC)")
    parser.add_argument(
        "--lost-after",
        type=int,
        default=300,
        metavar="SECONDS",
        help="without a sign of life a run counts as crashed; 60 at least (300)",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    given = parser.parse_args()
    if given.lost_after < 60:
        parser.error("--lost-after must be at least 60: Prefect gives a sign each 30 s at most")
    if given.image and given.pool == "process":
        parser.error("--image is for --pool docker and kubernetes")
    deploy(given)


def deploy(given: argparse.Namespace) -> None:
    root = given.root.resolve()
    name = given.name or root.name
    plan = _plan(root, name, given)
    if given.dry_run:
        print(yaml.safe_dump(plan, sort_keys=False), end="")
        return
    use_server(given.server or os.environ.get("PREFECT_API_URL") or LOCAL)

    from pipelines.automations import set_up_automations

    channels = read_params(root / "params.yaml").retrain.notify
    _set_up_pool(plan["work_pool"])
    _run_prefect_deploy(root, plan["deployments"])
    flows = [each["entrypoint"].rpartition(".")[2] for each in plan["deployments"]]
    made = set_up_automations(name, flows, channels, given.lost_after)
    pool = plan["work_pool"]["name"]
    print(
        f"deployed {', '.join(f'{flow}/{name}' for flow in flows)} in work pool '{pool}'; "
        f"automations: {', '.join(made)}\nstart a worker: prefect worker start --pool {pool}"
    )


# --- what to deploy -----------------------------------------------------------------------------


def _plan(root: Path, name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Return the work pool and the deployments, as prefect.yaml and the options have them."""
    file = root / "prefect.yaml"
    if not file.exists():
        raise MaestroError(f"{root} holds no prefect.yaml: name the project's folder with --root")
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    try:
        pool = copy.deepcopy(content["definitions"]["work_pools"][given.pool])
        deployments = content["deployments"]
    except KeyError as missing:
        raise MaestroError(f"{file} lacks {missing}, which deploying goes by") from None
    variables = pool["job_variables"]
    variables["env"][HEARTBEAT] = str(max(30, given.lost_after // 4))
    if given.image:
        variables["image"] = given.image
    if "user" in variables.get("container_create_kwargs", {}):
        variables["container_create_kwargs"]["user"] = _owner(root)
    return {
        "work_pool": {"type": given.pool, **pool},
        "deployments": [_deployment(each, name, pool, given) for each in deployments],
    }


def _deployment(
    base: dict[str, Any], name: str, pool: dict[str, Any], given: argparse.Namespace
) -> dict[str, Any]:
    work_pool = {key: pool[key] for key in ("name", "job_variables")}
    result = copy.deepcopy({**base, "name": name, "work_pool": work_pool})
    for trigger in result.get("triggers", []):
        if EVENT in trigger.get("expect", []):
            trigger["match"] = {"prefect.resource.id": f"maestro.data.{name}"}
    if "schedules" in result and given.cron:
        result["schedules"] = [{"cron": given.cron, "timezone": given.timezone, "active": True}]
    if given.no_schedule:  # to leave them out would leave those that the server has
        for schedule in result.get("schedules", []):
            schedule["active"] = False
    return result


def _owner(folder: Path) -> str:
    """Return user:group that owns `folder`. Raises MaestroError for root, who writes through
    DVC's links into its cache.
    """
    found = folder.stat()
    if found.st_uid == 0:
        raise MaestroError(
            f"{folder} is root's, and runs in containers must not be: give it to a user (chown)"
        )
    return f"{found.st_uid}:{found.st_gid}"


# --- doing it -----------------------------------------------------------------------------------


def _set_up_pool(pool: dict[str, Any]) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
    from prefect.exceptions import ObjectNotFound

    template = base_job_template(pool)
    with get_client(sync_client=True) as client:
        try:
            found = client.read_work_pool(pool["name"])
        except ObjectNotFound:
            client.create_work_pool(
                WorkPoolCreate(name=pool["name"], type=pool["type"], base_job_template=template)
            )
            return
        if found.type != pool["type"]:
            raise MaestroError(
                f"work pool '{pool['name']}' is of type {found.type}, not {pool['type']}: "
                "give it another name in prefect.yaml"
            )
        client.update_work_pool(pool["name"], WorkPoolUpdate(base_job_template=template))


def base_job_template(pool: dict[str, Any]) -> dict[str, Any]:
    """Return Prefect's template for jobs of this type of pool, with the project's additions."""
    template: dict[str, Any] = _worker(pool["type"]).get_default_base_job_template()
    if pool["type"] == "kubernetes":
        spec = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
        merge(spec["containers"][0], pool["container"])
        merge(spec, pool["pod"])
    return template


def _worker(kind: Kind) -> Any:
    try:
        if kind == "docker":
            from prefect_docker import DockerWorker

            return DockerWorker
        if kind == "kubernetes":
            from prefect_kubernetes import KubernetesWorker

            return KubernetesWorker
    except ImportError:
        raise MaestroError(
            f"--pool {kind} needs prefect-{kind}: pip install 'maestro-mae[{kind}]'"
        ) from None
    from prefect.workers.process import ProcessWorker

    return ProcessWorker


def merge(into: dict[str, Any], more: dict[str, Any]) -> None:
    """Add `more` to `into`, mapping by mapping."""
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value


def _run_prefect_deploy(root: Path, deployments: list[dict[str, Any]]) -> None:
    """Let Prefect's own command do it, so that all that prefect.yaml may hold is understood."""
    content = yaml.safe_load((root / "prefect.yaml").read_text(encoding="utf-8"))
    content["deployments"] = deployments
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prefect.yaml"
        file.write_text(yaml.safe_dump(content), encoding="utf-8")
        done = subprocess.run(
            [*PREFECT_DEPLOY, "--all", "--prefect-file", str(file)],
            cwd=root,
            env={**os.environ, "PWD": str(root)},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise MaestroError(f"prefect deploy failed:\n{(done.stdout + done.stderr).strip()}")


if __name__ == "__main__":
    leave_with(main)
