"""What the endpoints answer: the model's own numbers, and for bad input a reason and no more."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mae.export.images import read_image
from mae.export.serving.settings import Limits
from mae.export.session import ClassifierSession, EncoderSession
from tests.export.serving import made
from tests.export.serving.conftest import Files

RAW = {"Content-Type": "application/octet-stream"}


def expected(files: Files, *images: bytes, feature: str = "cls") -> np.ndarray:
    session = EncoderSession(files.encoder, "cpu", threads=1)
    pixels = [read_image(image, session.view()) for image in images]
    return np.concatenate([session(one[None], (feature,))[feature] for one in pixels])


def vectors(answer: Any) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.array([image["embedding"] for image in answer.json()["images"]])


def refusal(answer: Any, status: int, error: str) -> str:
    assert answer.status_code == status, answer.text
    content = answer.json()
    assert set(content) == {"error", "detail"}
    assert content["error"] == error
    assert content["detail"] and "Traceback" not in content["detail"]
    return str(content["detail"])


# --- Answers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("feature", ["cls", "mean"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"])
def test_embed_gives_the_models_vector(client: Any, files: Files, kind: str, feature: str) -> None:
    image = made.encoded(made.picture(3), kind)
    answer = client.post(f"/embed?feature={feature}", content=image, headers=RAW)
    np.testing.assert_allclose(
        vectors(answer), expected(files, image, feature=feature), rtol=0, atol=1e-5
    )
    content = answer.json()
    assert (content["feature"], content["dim"]) == (feature, 16)
    assert content["images"][0]["name"] is None
    assert content["model"]["sha256"] == EncoderSession(files.encoder, "cpu").sha256


@pytest.mark.parametrize("kind", ["image/png", "IMAGE/PNG; x=y", "application/octet-stream", None])
def test_types_of_a_body_that_is_an_image(client: Any, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    assert client.post("/embed", content=made.png(1), headers=headers).status_code == 200


def test_a_form_of_several_images_keeps_their_order(client: Any, files: Files) -> None:
    images = [made.png(seed, height=30 + seed) for seed in range(5)]
    form = [("file", (f"{at}.png", image, "image/png")) for at, image in enumerate(images)]
    answer = client.post("/embed", files=form, data={"note": "not looked at"})
    np.testing.assert_allclose(vectors(answer), expected(files, *images), rtol=0, atol=1e-5)
    assert [image["name"] for image in answer.json()["images"]] == [f"{at}.png" for at in range(5)]


def test_requests_that_share_a_batch_get_their_own_answers(files: Files) -> None:
    from concurrent.futures import ThreadPoolExecutor

    images = [made.png(seed) for seed in range(24)]
    with (
        made.serving(files.encoder, batch=8, wait_seconds=0.2) as client,
        ThreadPoolExecutor(8) as clients,
    ):
        answers = list(clients.map(lambda one: client.post("/embed", content=one), images))
        assert made.counted(client, "maestro_batch_images_count") < 24  # some did share
        assert made.counted(client, "maestro_batch_images_sum") == 24
    for answer, row in zip(answers, expected(files, *images), strict=True):
        np.testing.assert_allclose(vectors(answer)[0], row, rtol=0, atol=1e-5)


def test_classify_names_the_likeliest_first(client: Any, files: Files) -> None:
    image = made.png(4)
    session = ClassifierSession(files.classifier, "cpu", threads=1)
    probabilities = session(read_image(image, session.view())[None])[0]
    order = np.argsort(-probabilities)
    for top in (1, 2, 5):  # there are three classes
        answer = client.post(f"/classify?top={top}", content=image).json()
        classes = answer["images"][0]["classes"]
        assert [one["label"] for one in classes] == [made.CLASSES[at] for at in order[:top]]
        np.testing.assert_allclose(
            [one["probability"] for one in classes], probabilities[order[:top]], atol=1e-5
        )


def test_search_finds_the_image_itself(client: Any) -> None:
    form = [("file", (f"{seed}.png", made.png(seed), "image/png")) for seed in (7, 2)]
    answer = client.post("/search?k=3", files=form)
    assert answer.status_code == 200
    found = [image["matches"] for image in answer.json()["images"]]
    assert [matches[0]["key"] for matches in found] == ["07.png", "02.png"]
    assert found[0][0]["similarity"] == pytest.approx(1, abs=1e-5)
    assert [len(matches) for matches in found] == [3, 3]
    assert (
        len(client.post("/search?k=1000", content=made.png(1)).json()["images"][0]["matches"]) == 12
    )


@pytest.mark.parametrize("kind", ["grey of 16 bits", "resized in the graph"])
def test_other_kinds_of_models(tmp_path: Path, kind: str) -> None:
    if kind == "resized in the graph":
        model = made.write_encoder(tmp_path / "encoder.onnx", resolution="resized")
        images = [made.png(seed, 30 + 20 * seed, 70) for seed in range(4)]
    else:
        model = made.write_encoder(tmp_path / "encoder.onnx", channels=1, bit_depth=16)
        deep = [made.picture(seed)[..., 0].astype(np.uint16) * 250 for seed in range(4)]
        images = [made.encoded(pixels) for pixels in deep]
    session = EncoderSession(model, "cpu", threads=1)
    rows = [session(read_image(one, session.view())[None], ("cls",))["cls"][0] for one in images]
    with made.serving(model, batch=4) as client:
        form = [("file", (f"{at}.png", image)) for at, image in enumerate(images)]
        answer = client.post("/embed", files=form)
        np.testing.assert_allclose(vectors(answer), rows, rtol=0, atol=1e-5)


# --- Bad input --------------------------------------------------------------------------------


def cut_short(kind: str) -> bytes:
    whole = made.encoded(made.picture(1, 200, 200), kind)
    return whole[: len(whole) // 2]


def floating_point() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((9, 9), np.float32)).save(buffer, "TIFF")
    return buffer.getvalue()


@pytest.mark.parametrize("path", ["/embed", "/classify", "/search"])
@pytest.mark.parametrize(
    ("image", "status", "error"),
    [
        (b"", 422, "empty"),
        (b"not an image", 422, "not_an_image"),
        (b"%PDF-1.7 and more", 422, "not_an_image"),
        (cut_short("PNG"), 422, "truncated"),
        (floating_point(), 422, "unsupported"),
        (made.bomb(), 413, "too_large"),
    ],
    ids=["empty", "text", "pdf", "cut PNG", "float", "bomb"],
)
def test_bad_images(client: Any, path: str, image: bytes, status: int, error: str) -> None:
    before = made.counted(client, "maestro_rejected_total", reason=error)
    refusal(client.post(path, content=image, headers=RAW), status, error)
    assert made.counted(client, "maestro_rejected_total", reason=error) == before + 1


def test_a_bomb_is_never_decoded(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object, **__: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("mae.export.images.decode", decode)
    detail = refusal(client.post("/embed", content=made.bomb()), 413, "too_large")
    assert "10000 x 10000" in detail


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/json", "application/x-www-form-urlencoded", "nonsense"]
)
def test_wrong_types(client: Any, kind: str) -> None:
    answer = client.post("/embed", content=made.png(1), headers={"Content-Type": kind})
    assert kind in refusal(answer, 415, "wrong_type")


FORM = {"Content-Type": "multipart/form-data; boundary=b"}
PART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x.png"\r\n\r\n'


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b"no boundary", {"Content-Type": "multipart/form-data"}),
        (b"", FORM),
        (b"something else", FORM),
        (PART + made.png(1), FORM),
        (PART + made.png(1) + b"\r\n" + PART + made.png(2)[:50], FORM),
        (b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\nvalue\r\n--b--\r\n', FORM),
        (b"--b\r\nContent-Type: image/png\r\n\r\nvalue\r\n--b--\r\n", FORM),
    ],
    ids=["no boundary", "empty", "junk", "no end", "second cut", "no file", "no name"],
)
def test_broken_forms(client: Any, content: bytes, headers: dict[str, str]) -> None:
    refusal(client.post("/embed", content=content, headers=headers), 400, "malformed")


def test_one_bad_image_of_a_form_is_named(client: Any) -> None:
    form = [
        ("file", ("good.png", made.png(1))),
        ("file", ("bad.png", b"junk")),
        ("file", ("hollow.png", b"")),
    ]
    detail = refusal(client.post("/embed", files=form), 422, "not_an_image")
    assert "2 of 3 images" in detail and "bad.png" in detail and "hollow.png" in detail
    assert "good.png" not in detail


def test_a_body_is_counted_whatever_it_declares(files: Files) -> None:
    limits = Limits(max_bytes=10_000)

    def endless() -> Any:
        for _ in range(100):
            yield b"x" * 1000
        raise AssertionError("read to the end")

    with made.serving(files.encoder, limits=limits) as client:
        refusal(client.post("/embed", content=b"x" * 10_001), 413, "too_large")
        refusal(client.post("/embed", files={"file": b"x" * 10_001}), 413, "too_large")
        refusal(client.post("/embed", content=iter([b"x" * 6000] * 2)), 413, "too_large")
        assert client.post("/embed", content=made.png(1)).status_code == 200
        assert client.service._budget.held == 0


def test_too_many_images(files: Files) -> None:
    with made.serving(files.encoder, limits=Limits(queue=3)) as client:
        form = [("file", (f"{at}.png", made.png(at))) for at in range(4)]
        refusal(client.post("/embed", files=form), 413, "too_many_images")
        assert client.post("/embed", files=form[:3]).status_code == 200


@pytest.mark.parametrize(
    "query",
    ["/embed?feature=patches", "/classify?top=0", "/classify?top=x", "/search?k=1001"],
)
def test_bad_parameters(client: Any, query: str) -> None:
    name = query.partition("?")[2].partition("=")[0]
    detail = refusal(client.post(query, content=made.png(1)), 422, "invalid_parameter")
    assert detail.startswith(name)


def test_other_paths_and_methods(client: Any, files: Files) -> None:
    refusal(client.get("/nothing"), 404, "not_found")
    answer = client.get("/embed")
    refusal(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"
    with made.serving(files.encoder) as bare:
        answer = bare.post("/classify", content=made.png(1))
        assert "--classifier" in refusal(answer, 404, "not_found")
        assert "--index" in refusal(bare.post("/search"), 404, "not_found")
        assert set(bare.get("/openapi.json").json()["paths"]) == {
            "/embed",
            "/health",
            "/ready",
            "/metrics",
        }


def test_a_fault_of_ours_is_told_without_its_trace(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    with made.serving(files.encoder) as client:
        encoder = client.service.deployment.served.encoder

        def fail(*_: object) -> None:
            raise RuntimeError("a secret")

        monkeypatch.setattr(type(encoder.session), "__call__", fail)
        assert "secret" not in refusal(client.post("/embed", content=made.png(1)), 500, "internal")
        monkeypatch.undo()
        assert client.post("/embed", content=made.png(1)).status_code == 200
        assert made.counted(client, "maestro_requests_total", status="500") == 1


def test_numbers_that_are_none_are_refused(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    with made.serving(files.encoder) as client:

        def overflow(_: object, images: np.ndarray, outputs: tuple[str, ...]) -> Any:
            return {name: np.full((len(images), 16), np.nan, np.float32) for name in outputs}

        monkeypatch.setattr(EncoderSession, "__call__", overflow)
        refusal(client.post("/embed", content=made.png(1)), 422, "not_finite")


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data())
def test_no_damage_to_an_image_is_a_fault_of_ours(client: Any, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"]))
    image = bytearray(made.encoded(made.picture(1, 12, 12), kind))
    for at in data.draw(st.lists(st.integers(0, len(image) - 1), max_size=6)):
        image[at] = data.draw(st.integers(0, 255))
    del image[data.draw(st.integers(1, len(image))) :]
    answer = client.post("/embed", content=bytes(image))
    assert answer.status_code in (200, 413, 422), answer.text


# --- Too much at a time -----------------------------------------------------------------------


def test_a_full_queue_says_when_to_come_again(files: Files) -> None:
    import threading
    from concurrent.futures import ThreadPoolExecutor

    with (
        made.serving(files.encoder, limits=Limits(queue=2)) as client,
        ThreadPoolExecutor(2) as clients,
    ):
        running, may_run = threading.Event(), threading.Event()
        model = client.service.deployment.served.encoder
        run = type(model).run

        def held(self: Any, images: np.ndarray) -> Any:
            running.set()
            assert may_run.wait(60)
            return run(self, images)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(model), "run", held)
            waiting = [clients.submit(client.post, "/embed", content=made.png(s)) for s in (1, 2)]
            assert running.wait(60)
            while made.counted(client, "maestro_queue_images") < 2:
                pass
            answer = client.post("/embed", content=made.png(3))
            refusal(answer, 503, "busy")
            assert int(answer.headers["retry-after"]) >= 1
            assert client.get("/health").status_code == 200
            may_run.set()
            assert [one.result(60).status_code for one in waiting] == [200, 200]
        assert client.post("/embed", content=made.png(3)).status_code == 200
        assert made.counted(client, "maestro_queue_images") == 0


def test_bytes_held_at_a_time_are_bounded(files: Files) -> None:
    with made.serving(files.encoder, limits=Limits(held_bytes=5_000)) as client:
        refusal(client.post("/embed", content=b"x" * 6_000), 503, "busy")
        assert made.counted(client, "maestro_held_bytes") == 0
        small = made.png(1, 16, 24)
        assert len(small) + 16 * 24 * 3 < 5_000
        assert client.post("/embed", content=small).status_code == 200


# --- For operators and people -----------------------------------------------------------------


def test_state_and_metrics(client: Any, files: Files) -> None:
    assert client.get("/health").json() == {"status": "alive"}
    state = client.get("/ready").json()
    assert state["status"] == "ready" and state["problems"] == {}
    assert set(state["models"]) == {"encoder", "classifier"}
    assert state["models"]["encoder"]["sha256"] == EncoderSession(files.encoder, "cpu").sha256
    assert state["index"] == {"usable": True, "images": 12, "feature": "mean"}
    before = made.counted(client, "maestro_requests_total", endpoint="/embed", status="200")
    client.post("/embed", content=made.png(1))
    after = made.counted(client, "maestro_requests_total", endpoint="/embed", status="200")
    assert after == before + 1
    assert made.counted(client, "maestro_model_info", model="classifier") == 1
    assert made.counted(client, "process_resident_memory_bytes") > 1e6
    client.get("/made/up")
    text = client.get("/metrics").text
    assert "/made/up" not in text and 'endpoint="other"' in text


def test_the_first_page_tells_what_is_served_and_loads_nothing_foreign(client: Any) -> None:
    page = client.get("/", headers={"Host": '"><script>alert(1)</script>'})
    assert page.status_code == 200
    assert "<script>alert" not in page.text
    assert "encoder.onnx" in page.text and "12 images" in page.text
    for text in (page.text, client.get("/docs").text):
        assert "https://" not in text
    for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png"):
        assert client.get(f"/docs/{name}").status_code == 200
    refusal(client.get("/docs/index.html"), 404, "not_found")
    refusal(client.get("/docs/..%2f__init__.py"), 404, "not_found")


def test_every_refusal_is_documented(client: Any) -> None:
    document = client.get("/openapi.json").json()
    for path in ("/embed", "/classify", "/search"):
        operation = document["paths"][path]["post"]
        for status in ("400", "408", "413", "415", "422", "500", "503"):
            schema = operation["responses"][status]["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/Problem"}
        assert set(operation["requestBody"]["content"]) == {
            "application/octet-stream",
            "image/*",
            "multipart/form-data",
        }
    assert "HTTPValidationError" not in json.dumps(document)


def test_the_document_is_one_that_the_page_can_show(client: Any) -> None:
    """Swagger UI 4 shows nothing of a document of version 3.1."""
    document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.0.") and "summary" not in document["info"]
    schemas = document["components"]["schemas"]
    assert schemas["Vector"]["properties"]["name"]["nullable"] is True
    assert schemas["Readiness"]["properties"]["index"] == {
        "allOf": [{"$ref": "#/components/schemas/IndexState"}],
        "nullable": True,
    }
    assert schemas["Health"]["properties"]["status"]["enum"] == ["alive"]
    for later in ('"null"', '"const"', '"examples"'):
        assert later not in json.dumps(document)
