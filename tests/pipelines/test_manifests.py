"""deploy/, compose.yaml and Dockerfile: valid, at one with each other and with the programs."""

import asyncio
import copy
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import kubernetes_validate
import pytest
import yaml

from mae import errors
from pipelines.deploy import base_job_template
from tests.pipelines.project import ROOT, Project

KUBERNETES = sorted((ROOT / "deploy/kubernetes").glob("*.yaml"))
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def objects(file: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(file.read_text(encoding="utf-8")))


ALL = [one for file in KUBERNETES for one in objects(file)]


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [one for one in ALL if one["kind"] == kind]


def pods() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Yield (name, metadata, spec) of every pod that is made."""
    for one in ALL:
        spec = one.get("spec", {})
        template = spec.get("jobTemplate", {}).get("spec", spec).get("template")
        if template:
            yield one["metadata"]["name"], template.get("metadata", {}), template["spec"]


PODS = list(pods())
EACH_POD = pytest.mark.parametrize("pod", [pod for _, _, pod in PODS], ids=[n for n, _, _ in PODS])


# --- Kubernetes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.31", "1.33", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("file", KUBERNETES, ids=lambda file: file.stem)
def test_the_schemas_of_kubernetes_accept_it(file: Path, version: str) -> None:
    found = objects(file)
    assert found
    for one in found:
        kubernetes_validate.validate(one, version, strict=True)


def test_the_schemas_would_find_a_mistake() -> None:
    (job,) = objects(ROOT / "deploy/kubernetes/pipeline.yaml")
    job["spec"]["template"]["spec"]["containers"][0]["workdir"] = "/"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, "1.33", strict=True)


def test_names_are_given_once_in_one_namespace() -> None:
    (namespace,) = of_kind("Namespace")
    named = [(one["kind"], one["metadata"]["name"]) for one in ALL]
    assert len(set(named)) == len(named)
    rest = [one for one in ALL if one is not namespace]
    assert {one["metadata"]["namespace"] for one in rest} == {namespace["metadata"]["name"]}


@EACH_POD
def test_pods_run_as_nobody_special_and_find_what_they_name(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    security = pod["securityContext"]
    assert security["runAsNonRoot"] and security["runAsUser"] == 1000
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert re.fullmatch(r"maestro:(cpu|gpu)", container["image"])
    assert container["image"].endswith("gpu") == (
        "nvidia.com/gpu" in container["resources"].get("limits", {})
    )
    volumes = {one["name"]: one for one in pod.get("volumes", [])}
    assert {one["name"] for one in container.get("volumeMounts", [])} == volumes.keys()
    claims = {one["metadata"]["name"] for one in of_kind("PersistentVolumeClaim")}
    maps = {one["metadata"]["name"] for one in of_kind("ConfigMap")}
    accounts = {one["metadata"]["name"] for one in of_kind("ServiceAccount")}
    for volume in volumes.values():
        if claim := volume.get("persistentVolumeClaim"):
            assert claim["claimName"] in claims
    for source in container.get("envFrom", []):
        assert source["configMapRef"]["name"] in maps
    if account := pod.get("serviceAccountName"):
        assert account in accounts
    else:
        assert pod["automountServiceAccountToken"] is False


def test_services_and_budgets_select_pods_and_probes_name_ports() -> None:
    labels = [meta["labels"].items() for _, meta, _ in PODS if "labels" in meta]
    jobs = {("batch.kubernetes.io/job-name", one["metadata"]["name"]) for one in of_kind("Job")}
    for service in of_kind("Service"):
        wanted = service["spec"]["selector"].items()
        assert wanted <= jobs or any(wanted <= each for each in labels)
    for budget in of_kind("PodDisruptionBudget"):
        assert any(budget["spec"]["selector"]["matchLabels"].items() <= each for each in labels)
    for deployment in of_kind("Deployment"):
        template = deployment["spec"]["template"]
        wanted = deployment["spec"]["selector"]["matchLabels"].items()
        assert wanted <= template["metadata"]["labels"].items()
        (container,) = template["spec"]["containers"]
        ports = {one["name"] for one in container["ports"]}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            if probe in container:
                assert container[probe]["httpGet"]["port"] in ports


def test_the_encoder_is_ready_when_it_says_so() -> None:
    (encoder,) = [one for one in of_kind("Deployment") if "encoder" in one["metadata"]["name"]]
    (container,) = encoder["spec"]["template"]["spec"]["containers"]
    assert container["livenessProbe"]["httpGet"]["path"] == "/health"
    assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
    (service,) = [one for one in of_kind("Service") if "encoder" in one["metadata"]["name"]]
    (port,) = container["ports"]
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]
    assert container["command"][-1] == str(port["containerPort"])


def test_exit_codes_mean_what_the_programs_mean() -> None:
    lasting = {errors.ParamsError, errors.DataError, errors.CheckpointError, errors.DivergedError}
    for file in ("pipeline", "retrain"):
        (one,) = objects(ROOT / f"deploy/kubernetes/{file}.yaml")
        job = one["spec"].get("jobTemplate", one)["spec"]
        (container,) = job["template"]["spec"]["containers"]
        rules: dict[str, set[int]] = {}
        for rule in job["podFailurePolicy"]["rules"]:
            if codes := rule.get("onExitCodes"):
                assert codes["containerName"] == container["name"]
                rules[rule["action"]] = set(codes["values"])
        assert rules["Ignore"] == {errors.Interrupted.exit_code}
        assert rules["FailJob"] >= {error.exit_code for error in lasting}


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    """What Prefect's worker makes of the work pool and a flow run."""
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun
    from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

    content = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    pool = content["definitions"]["work_pools"]["kubernetes"]
    template = base_job_template({"type": "kubernetes", **pool})
    nobody = PrefectClient("http://127.0.0.1:9/api")  # nothing is asked of it

    async def make() -> KubernetesWorkerJobConfiguration:
        return await KubernetesWorkerJobConfiguration.from_template_and_values(
            template, pool["job_variables"], client=nobody
        )

    made = asyncio.run(make())
    made.prepare_for_flow_run(FlowRun(flow_id=uuid4(), name="a run"))
    return made.job_manifest


@pytest.mark.parametrize("version", ["1.31", kubernetes_validate.latest_version()])
def test_the_schemas_accept_the_job_of_the_work_pool(job: dict[str, Any], version: str) -> None:
    job = copy.deepcopy(job)
    for misplaced in ("completions", "parallelism"):  # by Prefect, which insists on them
        job["spec"]["template"]["spec"].pop(misplaced)
    kubernetes_validate.validate(job, version, strict=True)


def test_the_job_of_the_work_pool_is_as_the_others(job: dict[str, Any]) -> None:
    (other,) = objects(ROOT / "deploy/kubernetes/pipeline.yaml")
    pod, theirs = (one["spec"]["template"]["spec"] for one in (job, other))
    for key in ("securityContext", "volumes", "terminationGracePeriodSeconds"):
        assert pod[key] == theirs[key]
    (container,), (its,) = pod["containers"], theirs["containers"]
    for key in ("image", "workingDir", "volumeMounts", "securityContext"):
        assert container[key] == its[key]
    assert container["resources"]["limits"] == its["resources"]["limits"]
    names = {one["name"] for one in container["env"]}
    assert {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "GIT_AUTHOR_EMAIL"} <= names


# --- compose ------------------------------------------------------------------------------------


def test_the_schema_of_compose_accepts_it() -> None:
    schemas = pytest.importorskip("check_jsonschema.builtin_schemas", reason="holds the schema")
    import jsonschema

    schema = schemas.get_builtin_schema("vendor.compose-spec")
    for file in (ROOT / "compose.yaml", ROOT / "deploy/compose.gpu.yaml"):
        jsonschema.validate(yaml.safe_load(file.read_text()), schema)


def test_services_are_reached_from_this_machine_alone_and_have_no_rights() -> None:
    for name, service in SERVICES.items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name
        assert service["user"] in ("postgres", "${MAESTRO_UID:-1000}:${MAESTRO_GID:-1000}")
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert re.fullmatch(r"maestro:cpu|postgres:\d+\.\d+-\w+", service["image"]), "pinned"
        if name != "setup":
            assert service["restart"] == "unless-stopped"
            assert "healthcheck" in service or name == "watch"


def test_what_services_need_exists() -> None:
    for service in SERVICES.values():
        for other, condition in service.get("depends_on", {}).items():
            wanted = condition["condition"]
            assert wanted != "service_healthy" or "healthcheck" in SERVICES[other]
        assert set(service.get("secrets", [])) <= COMPOSE["secrets"].keys()
        for volume in service.get("volumes", []):
            if isinstance(volume, str):
                assert volume.split(":")[0] in COMPOSE["volumes"]
            else:
                assert volume["type"] == "bind" and volume["target"].startswith("/maestro")
    override = yaml.safe_load((ROOT / "deploy/compose.gpu.yaml").read_text())
    assert override["services"].keys() <= SERVICES.keys()
    stages = re.findall(r"^FROM \S+ AS (\w+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    for service in (*SERVICES.values(), *override["services"].values()):
        if build := service.get("build"):
            assert build["target"] in stages and service["image"] == f"maestro:{build['target']}"


def test_no_password_stands_anywhere() -> None:
    text = (ROOT / "compose.yaml").read_text()
    assert COMPOSE["secrets"] == {"database-password": {"environment": "MAESTRO_DATABASE_PASSWORD"}}
    assert not re.search(r"PASSWORD: *[^/\s]", text.replace("PASSWORD_FILE: /run", ""))
    for service in SERVICES.values():
        assert not any(
            "PASSWORD" in name
            for name in service.get("environment", {})
            if not name.endswith("_FILE")
        )


def test_prefect_reads_the_variables_that_are_set() -> None:
    from prefect.settings import Settings
    from prefect.settings.legacy import _get_settings_fields

    known = set(_get_settings_fields(Settings))
    for service in SERVICES.values():
        for name in service.get("environment", {}):
            assert not name.startswith("PREFECT_") or name in known


def test_the_server_finds_its_database(tmp_path: Path) -> None:
    shell, option, script = SERVICES["prefect"]["command"]
    (tmp_path / "password").write_text("s3cret")
    program = tmp_path / "prefect"
    program.write_text(
        f"#!{sys.executable}\n"
        "from prefect.settings import get_current_settings as current\n"
        "print(current().server.database.connection_url.get_secret_value())\n"
    )
    program.chmod(0o755)
    script = script.replace("$$", "$").replace("/run/secrets/database-password", "password")
    given = SERVICES["prefect"]["environment"] | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        [shell, option, script], cwd=tmp_path, env=given, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "postgresql+asyncpg://prefect:s3cret@database:5432/prefect"
    assert SERVICES["database"]["environment"]["POSTGRES_USER"] == "prefect"
    assert SERVICES["database"]["environment"]["POSTGRES_DB"] == "prefect"


# --- commands -----------------------------------------------------------------------------------


def commands() -> Iterator[list[str]]:
    for service in SERVICES.values():
        match service.get("command"):
            case ["sh", "-c", script]:
                yield script.partition("exec ")[2].split()
            case list(command):
                yield command
    for _, _, pod in PODS:
        yield pod["containers"][0]["command"]


COMMANDS = {" ".join(command): command for command in commands()}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=list(COMMANDS))
def test_programs_know_the_options_they_are_given(command: list[str]) -> None:
    options = {part.split("=")[0] for part in command if part.startswith("--")}
    end = next(i for i, part in enumerate(command) if part.startswith("--")) if options else None
    program = list(command[:end])
    module = {"mae": "mae.cli", "prefect": "prefect", "torchrun": "torch.distributed.run"}
    if program[0] == "python":
        program[0] = sys.executable
    else:
        program[:1] = [sys.executable, "-m", module[program[0]]]
    done = subprocess.run(
        [*program, "--help"],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "300", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    for option in options:
        assert re.search(rf"{option}\b", done.stdout), f"{option} in\n{done.stdout}"


def test_the_pool_of_the_worker_is_the_one_that_is_deployed() -> None:
    pools = yaml.safe_load((ROOT / "prefect.yaml").read_text())["definitions"]["work_pools"]
    assert f"--pool={pools['process']['name']}" in SERVICES["worker"]["command"]
    (worker,) = [one for name, _, one in PODS if name == "maestro-worker"]
    assert f"--pool={pools['kubernetes']['name']}" in worker["containers"][0]["command"]


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="no shellcheck")
def test_scripts_are_in_good_order() -> None:
    scripts = sorted(str(file) for file in (ROOT / "deploy").glob("*.sh"))
    subprocess.run(["shellcheck", *scripts], check=True)


# --- the encoder service and a checkout that it can only read -----------------------------------

EXPORT = """
artifacts:
  encoder: {path: artifacts/pretrain}
  onnx: {path: artifacts/export}
stages:
  make:
    cmd: >-
      mkdir -p artifacts/pretrain artifacts/export && echo weights > artifacts/pretrain/encoder &&
      echo onnx > artifacts/export/encoder.onnx
    outs: [artifacts/pretrain, artifacts/export]
"""
CHAMPION = """
from mae.export.models import open_source
source = open_source("champion")
print(source.fetch(source.current()).read_text().strip())
"""


def test_the_champion_is_found_with_what_the_service_may_write(project: Project) -> None:
    """All of the checkout can only be read, but for what compose.yaml mounts to be written."""
    project.stages(EXPORT)
    (project.root / ".gitignore").write_text("/runs/\n")
    project.python("-m", "dvc", "repro", "-q")
    project.commit()
    project.python("-m", "pipelines.registry", "promote", "encoder")
    shutil.rmtree(project.root / ".dvc/tmp")
    volumes = SERVICES["encoder"]["volumes"]
    assert volumes[0]["read_only"] and volumes[0]["target"] == "/maestro"
    writable = [project.root / volume["source"] for volume in volumes[1:]]
    for folder in writable:
        folder.mkdir(parents=True)
    subprocess.run(["chmod", "-R", "a-w", project.root], check=True)
    for folder in writable:
        folder.chmod(0o755)
    # Or root would write all the same.
    obedient = ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner"]
    try:
        done = subprocess.run(
            [*(obedient if os.getuid() == 0 else []), sys.executable, "-c", CHAMPION],
            cwd=project.root,
            env=project.environment | {"HOME": "/nonexistent"},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        subprocess.run(["chmod", "-R", "u+w", project.root], check=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "onnx"
    assert not project.run("git", "status", "--porcelain").stdout
