"""Models by the name of their version, as `mae` finds them."""

import shutil
import string
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mae.errors import MaestroError
from pipelines.fetching import fetch
from pipelines.model_source import RegistrySource, registry_source
from pipelines.registry import named, promote, rollback
from tests.pipelines.project import Project

PIPELINE = """
artifacts:
  encoder: {path: artifacts/pretrain, type: model}
  onnx: {path: artifacts/export, type: model}
stages:
  pretrain:
    cmd: cp -r ../made/$(cat v)/artifacts/pretrain artifacts/pretrain
    deps: [v]
    outs: [artifacts/pretrain]
  export:
    cmd: cp -r ../made/$(cat v)/artifacts/export artifacts/export
    deps: [v]
    outs: [artifacts/export]
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two tiny encoders, `a` and `b`, and images to embed."""
    from mae.export.description import EncoderDescription
    from mae.export.onnx_export import PixelEncoder, write_onnx
    from mae.model.artifact import load_encoder
    from tests.small_project import pretrained_project

    place = tmp_path_factory.mktemp("models") / "made"
    for name, dim in (("a", 16), ("b", 24)):
        params = pretrained_project(place / name, dim=dim)
        artifact = load_encoder(place / name / "artifacts/pretrain")
        write_onnx(
            place / name / "artifacts/export/encoder.onnx",
            PixelEncoder(artifact.encoder, artifact.statistics),
            EncoderDescription.of(artifact),
            params.export.opset,
        )
    return place


@pytest.fixture(scope="module")
def champions(template: Path, made: Path) -> Path:
    """Return a project whose v0.1.0 has no ONNX, v0.2.0 is `a` and v0.3.0, the champion, `b`."""
    root = made.parent / "project"
    shutil.copytree(template, root)
    project = Project(root)
    (root / "artifacts").mkdir()
    for version, pipeline in (
        ("a", PIPELINE[: PIPELINE.index("  export:")]),
        ("a", PIPELINE),
        ("b", PIPELINE),
    ):
        (root / "v").write_text(version)
        project.stages(pipeline)
        project.python("-m", "dvc", "repro", "-q")
        project.commit()
        promote(root, "encoder", "prod")
    return root


@pytest.fixture
def project(champions: Path, tmp_path: Path) -> Iterator[Project]:
    shutil.copytree(champions, tmp_path / "project", symlinks=True)
    project = Project(tmp_path / "project")
    yield project
    project.end_all()


@pytest.fixture
def source(project: Project, monkeypatch: pytest.MonkeyPatch) -> RegistrySource:
    monkeypatch.setenv("MAESTRO_ROOT", str(project.root))
    found = registry_source("champion")
    assert found is not None
    return found


def test_the_name_follows_promotion_and_rollback(source: RegistrySource) -> None:
    assert source.current() == "encoder@v0.3.0"
    champion = source.fetch("encoder@v0.3.0").read_bytes()
    rollback(source.root, "encoder", "prod")
    assert source.current() == "encoder@v0.2.0"
    assert source.fetch("encoder@v0.2.0").read_bytes() != champion
    promote(source.root, "encoder", "prod", version="v0.3.0")
    assert source.fetch(source.current()).read_bytes() == champion


@pytest.mark.parametrize(
    "name, version",
    [("encoder#prod", "encoder@v0.3.0"), ("encoder@v0.2.0", "encoder@v0.2.0")],
)
def test_other_names_of_versions(source: RegistrySource, name: str, version: str) -> None:
    found = registry_source(name)
    assert found is not None and found.current() == version


def test_a_version_without_the_file_says_what_it_has(source: RegistrySource) -> None:
    with pytest.raises(MaestroError, match=r"v0\.1\.0 has no encoder\.onnx: .* holds pretrain;"):
        source.fetch("encoder@v0.1.0")
    other = registry_source("champion", "classifier.onnx")
    assert other is not None
    with pytest.raises(MaestroError, match=r"has no classifier\.onnx: .* export, pretrain;"):
        other.fetch(other.current())
    with pytest.raises(MaestroError, match="no version v7"):
        source.fetch("encoder@v7")


@pytest.mark.parametrize(
    "name", ["encoder", "encoder.onnx", "a/b.onnx", "", "@v1", "#", "x#", "é#p"]
)
def test_what_is_no_name_of_a_version(name: str) -> None:
    assert registry_source(name) is None


@given(st.text(string.ascii_letters + string.digits + "@#./-_! ", max_size=12))
def test_any_name_is_answered(name: str) -> None:
    """There is a project (this one), so a name of ours gives a source and any other None."""
    found = registry_source(name)
    assert found is None or (found.name == name and ("@" in name or "#" in name))


def test_names_need_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAESTRO_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MaestroError, match=r"'champion' is a model of a project's registry.*dvc"):
        registry_source("champion")
    monkeypatch.setenv("MAESTRO_ROOT", str(tmp_path))
    with pytest.raises(MaestroError, match=r"MAESTRO_ROOT is .* no dvc\.yaml"):
        registry_source("champion")


def test_the_nearest_project_above_is_asked(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MAESTRO_ROOT", raising=False)
    monkeypatch.chdir(project.root / "artifacts")
    found = registry_source("champion")
    assert found is not None and found.root == project.root


def test_asking_for_the_champion_loads_no_slow_library(project: Project) -> None:
    code = (
        "import sys; from pipelines.model_source import registry_source; "
        "print(registry_source('champion').current(), "
        "*({'dvc', 'gto', 'torch', 'prefect', 'pandas', 'pydantic'} & sys.modules.keys()))"
    )
    assert project.python("-c", code).stdout.split() == ["encoder@v0.3.0"]


def test_mae_knows_the_registry() -> None:
    points = entry_points(group="maestro.models")
    assert [point.load() for point in points] == [registry_source]
    assert all(name in registry_source.known for name in ("champion", "#", "@"))


def test_mae_embed_takes_the_champion(project: Project, made: Path) -> None:
    """From within the project, from elsewhere, by version, and after a rollback."""
    images = str(made / "a/source")

    def embed(model: str, name: str, where: Path, **environment: str) -> int:
        out = project.root / f"{name}.parquet"
        what = ["--model", model, "--images", images, "--out", str(out)]
        ended = subprocess.run(
            [sys.executable, "-m", "mae.cli", "embed", *what, "--device", "cpu", "--workers", "1"],
            cwd=where,
            env={**project.environment, "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        table = pq.read_table(out)
        assert table.num_rows == 40
        return len(table["embedding"][0])

    assert embed("champion", "first", project.root) == 24
    assert embed("encoder@v0.2.0", "second", project.root) == 16
    rollback(project.root, "encoder", "prod")
    elsewhere = project.root.parent
    assert embed("champion", "third", elsewhere, MAESTRO_ROOT=str(project.root)) == 16
    same = fetch(project.root, named(project.root, "encoder#prod")) / "export/encoder.onnx"
    assert same.read_bytes() == (made / "a/artifacts/export/encoder.onnx").read_bytes()
