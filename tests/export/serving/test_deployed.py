"""A newer model takes over between two requests; one that cannot leaves the old in place."""

import logging
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mae.errors import CheckpointError, DataError, MaestroError
from mae.export.images import read_image
from mae.export.models import ModelSource
from mae.export.serving import deployed
from mae.export.session import EncoderSession
from tests.export.serving import made
from tests.export.serving.conftest import Files

PATIENCE = 60


@pytest.fixture
def folder(files: Files, tmp_path: Path) -> Path:
    """Models and an index that may be replaced."""
    for file in (files.encoder, files.classifier):
        shutil.copy(file, tmp_path)
    shutil.copytree(files.index, tmp_path / "index")
    return tmp_path


@pytest.fixture
def client(folder: Path) -> Iterator[Any]:
    with made.serving(
        folder / "encoder.onnx",
        classifier=str(folder / "classifier.onnx"),
        index=folder / "index",
        reload_seconds=0.001,
    ) as it:
        it.service._watch.stop()  # the tests look themselves, when they want to
        yield it


def put(source: Path, target: Path) -> None:
    """Replace a file at once, as whoever publishes a model does."""
    shutil.copy(source, target.with_suffix(".new"))
    target.with_suffix(".new").replace(target)


def check(client: Any) -> None:
    client.service.deployment.check()


def embedding(client: Any, seed: int = 1) -> np.ndarray:
    answer = client.post("/embed", content=made.png(seed))
    assert answer.status_code == 200
    return np.array(answer.json()["images"][0]["embedding"])


def by(model: Path, seed: int = 1) -> np.ndarray:
    session = EncoderSession(model, "cpu", threads=1)
    return session(read_image(made.png(seed), session.view())[None], ("cls",))["cls"][0]


def reloads(client: Any, model: str, outcome: str) -> float:
    return made.counted(client, "maestro_reloads_total", model=model, outcome=outcome)


def test_nothing_happens_while_nothing_is_new(client: Any) -> None:
    before = client.service.deployment.served
    check(client)
    assert client.service.deployment.served is before
    assert client.get("/ready").json()["problems"] == {}


def test_a_newer_encoder_takes_over(client: Any, folder: Path, files: Files) -> None:
    np.testing.assert_allclose(embedding(client), by(files.encoder), atol=1e-5)
    old = client.get("/ready").json()["models"]["encoder"]
    put(files.other, folder / "encoder.onnx")
    np.testing.assert_allclose(embedding(client), by(files.encoder), atol=1e-5)
    check(client)
    np.testing.assert_allclose(embedding(client), by(files.other), atol=1e-5)
    new = client.get("/ready").json()["models"]["encoder"]
    assert new["sha256"] == EncoderSession(files.other, "cpu").sha256 != old["sha256"]
    assert new["version"] != old["version"] and new["since"] > old["since"]
    assert reloads(client, "encoder", "loaded") == 1
    assert made.counted(client, "maestro_model_info", model="encoder") == 1  # and not the old one's


def test_a_newer_classifier_takes_over(
    client: Any, folder: Path, files: Files, tmp_path: Path
) -> None:
    before = client.post("/classify", content=made.png(1)).json()
    newer = made.changed(files.classifier, tmp_path / "made.onnx", weights=1.5)
    put(newer, folder / "classifier.onnx")
    check(client)
    assert client.post("/classify", content=made.png(1)).json()["images"] != before["images"]
    assert reloads(client, "classifier", "loaded") == 1


def test_requests_under_way_end_on_the_model_they_began_with(
    client: Any, folder: Path, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    running, may_run = threading.Event(), threading.Event()
    run = deployed.Deployed.run

    def held(self: Any, images: np.ndarray) -> Any:
        if threading.current_thread().name == "inference":
            running.set()
            assert may_run.wait(PATIENCE)
        return run(self, images)

    monkeypatch.setattr(deployed.Deployed, "run", held)
    with ThreadPoolExecutor(1) as clients:
        waiting = clients.submit(embedding, client)
        assert running.wait(PATIENCE)
        put(files.other, folder / "encoder.onnx")
        check(client)
        may_run.set()
        np.testing.assert_allclose(waiting.result(PATIENCE), by(files.encoder), atol=1e-5)
    np.testing.assert_allclose(embedding(client), by(files.other), atol=1e-5)


def damaged(files: Files, path: Path) -> Path:
    path.write_bytes(b"no graph")
    return path


def other_channels(files: Files, path: Path) -> Path:
    return made.changed(files.encoder, path, channels=1)


def other_height(files: Files, path: Path) -> Path:
    return made.changed(files.encoder, path, height=32)


def other_width_of_vectors(files: Files, path: Path) -> Path:
    return made.changed(files.encoder, path, dim=8)


def other_kind(files: Files, path: Path) -> Path:
    return files.classifier


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (damaged, "not an ONNX file"),
        (other_channels, "channels 1, not 3"),
        (other_height, "height 32, not 16"),
        (other_width_of_vectors, "width of vectors 8, not 16"),
        (other_kind, "is a classifier"),
    ],
)
def test_a_model_that_cannot_take_over_is_refused(
    client: Any, folder: Path, files: Files, tmp_path: Path, make: Any, told: str
) -> None:
    put(make(files, tmp_path / "made.onnx"), folder / "encoder.onnx")
    check(client)
    np.testing.assert_allclose(embedding(client), by(files.encoder), atol=1e-5)
    state = client.get("/ready")
    assert state.status_code == 200
    assert told in state.json()["problems"]["encoder"]
    assert made.counted(client, "maestro_model_problem", model="encoder") == 1
    assert client.post("/search", content=made.png(1)).status_code == 200
    time.sleep(0.002)
    check(client)
    assert reloads(client, "encoder", "refused") == 1  # tried again, told once
    put(files.other, folder / "encoder.onnx")
    check(client)
    np.testing.assert_allclose(embedding(client), by(files.other), atol=1e-5)
    problems = client.get("/ready").json()["problems"]
    assert "encoder" not in problems


def test_a_model_that_vanishes_goes_on_serving(client: Any, folder: Path, files: Files) -> None:
    (folder / "encoder.onnx").unlink()
    check(client)
    assert "cannot be read" in client.get("/ready").json()["problems"]["encoder"]
    np.testing.assert_allclose(embedding(client), by(files.encoder), atol=1e-5)
    put(files.encoder, folder / "encoder.onnx")
    check(client)
    assert client.get("/ready").json()["problems"] == {}


def test_a_version_that_failed_is_tried_less_and_less_often(files: Files) -> None:
    watched = deployed._Watched(deployed.open_source(str(files.encoder)))
    assert watched.failed("broken", "v2", 10)
    assert watched.is_paused("v2") and not watched.is_paused("v3")
    pauses = []
    for _ in range(8):
        assert not watched.failed("broken", "v2", 10)
        pauses.append(watched.pause)
    assert pauses == [20, 40, 80, 160, 300, 300, 300, 300]
    assert watched.failed("broken", "v3", 10) and watched.pause == 10


# --- The index --------------------------------------------------------------------------------


def test_an_index_of_another_encoder_is_refused_at_the_start(files: Files) -> None:
    with (
        pytest.raises(CheckpointError, match="built with another encoder"),
        made.serving(files.other, index=files.index),
    ):
        pass
    nowhere = files.index.with_name("nowhere")
    with pytest.raises(DataError, match="is no index"), made.serving(files.encoder, index=nowhere):
        pass


def test_no_search_until_the_index_fits_the_newer_encoder(
    client: Any, folder: Path, files: Files, tmp_path: Path
) -> None:
    assert client.post("/search", content=made.png(1)).status_code == 200
    put(files.other, folder / "encoder.onnx")
    check(client)
    answer = client.post("/search", content=made.png(1))
    assert (answer.status_code, answer.json()["error"]) == (503, "no_index")
    assert "another encoder" in answer.json()["detail"] and answer.headers["retry-after"]
    state = client.get("/ready")
    assert state.status_code == 200
    assert state.json()["index"] == {"usable": False, "images": None, "feature": None}
    assert "another encoder" in state.json()["problems"]["index"]
    assert made.counted(client, "maestro_model_problem", model="index") == 1
    assert embedding(client).shape == (16,)

    newer = made.write_index(tmp_path / "newer" / "index", files.other, pictures=5)
    shutil.rmtree(folder / "index")
    newer.rename(folder / "index")
    check(client)
    answer = client.post("/search?k=1", content=made.png(3)).json()
    assert answer["images"][0]["matches"][0]["key"] == "03.png"
    assert client.get("/ready").json()["problems"] == {}


def test_an_index_that_is_spoiled_leaves_the_one_in_use(
    client: Any, folder: Path, files: Files, tmp_path: Path
) -> None:
    foreign = made.write_index(tmp_path / "foreign" / "index", files.other, pictures=3)
    (folder / "index").rename(folder / "old")
    foreign.rename(folder / "index")
    check(client)
    assert client.post("/search", content=made.png(1)).status_code == 200
    state = client.get("/ready").json()
    assert state["index"]["images"] == 12 and "another encoder" in state["problems"]["index"]
    # The encoder it was built with comes later: then it fits.
    put(files.other, folder / "encoder.onnx")
    check(client)
    state = client.get("/ready").json()
    assert state["index"]["images"] == 3 and state["problems"] == {}


def test_an_index_that_comes_file_by_file_is_taken_once_it_is_whole(
    client: Any, folder: Path
) -> None:
    (folder / "index").rename(folder / "old")
    (folder / "index").mkdir()
    before = client.service.deployment.served.index
    for name in ("index.json", "keys.parquet", "index.usearch"):
        shutil.copy(folder / "old" / name, folder / "index" / name)
        check(client)
        assert client.post("/search", content=made.png(1)).status_code == 200
    assert client.get("/ready").json()["problems"] == {}
    assert client.service.deployment.served.index is not before


# --- Looking by itself ------------------------------------------------------------------------


class Registry:
    """A registry: the name `champion` stands for a version that may be promoted."""

    name = "champion"
    versions: dict[str, Path]
    promoted = "v1"
    broken = False

    def current(self) -> str:
        if self.broken:
            raise MaestroError("the registry cannot be reached")
        return self.promoted

    def fetch(self, version: str) -> Path:
        return self.versions[version]


def test_a_promoted_champion_is_served_without_a_restart(
    files: Files, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    registry = Registry()
    registry.versions = {"v1": files.encoder, "v2": files.other}
    source: ModelSource = registry
    monkeypatch.setattr(deployed, "open_source", lambda name, file: source)
    with (
        caplog.at_level(logging.INFO, logger="mae"),
        made.serving("champion", reload_seconds=0.01) as client,
    ):
        assert client.get("/ready").json()["models"]["encoder"]["version"] == "v1"
        registry.broken = True
        until(lambda: "encoder" in client.get("/ready").json()["problems"])
        np.testing.assert_allclose(embedding(client), by(files.encoder), atol=1e-5)
        registry.broken, registry.promoted = False, "v2"
        until(lambda: client.get("/ready").json()["models"]["encoder"]["version"] == "v2")
        np.testing.assert_allclose(embedding(client), by(files.other), atol=1e-5)
        assert client.get("/ready").json()["problems"] == {}
    assert "encoder v2 took the place of v1" in caplog.text
    assert "cannot be reached" in caplog.text
    assert "reload" not in [thread.name for thread in threading.enumerate()]


def test_looking_survives_whatever_happens(caplog: pytest.LogCaptureFixture) -> None:
    calls = threading.Semaphore(0)

    def fail() -> None:
        calls.release()
        raise RuntimeError("unforeseen")

    watch = deployed.Watch(fail, 0.001)
    assert calls.acquire(timeout=PATIENCE) and calls.acquire(timeout=PATIENCE)
    watch.stop()
    assert "unforeseen" in caplog.text


def until(condition: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
