"""The OpenAPI document keeps its word: in a browser, and against whatever schemathesis makes up."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mae.export.images import read_image
from mae.export.session import EncoderSession
from tests.export.serving import made
from tests.export.serving.conftest import Files
from tests.export.serving.ports import listening

ROOT = Path(__file__).parents[3]
CHROMIUM = Path("/usr/bin/chromium")
_FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
PATIENCE = 120_000  # milliseconds


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hooks", "options"),
    [
        ("tests.export.serving.made_of_pictures", []),
        # Without them it sends bytes that are no images, which are refused and must be.
        ("", ["--exclude-checks", "positive_data_acceptance"]),
    ],
    ids=["images", "any bytes"],
)
def test_schemathesis_finds_nothing(
    files: Files, tmp_path: Path, hooks: str, options: list[str]
) -> None:
    pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SCHEMATHESIS_HOOKS": hooks}
    if not hooks:
        del environment["SCHEMATHESIS_HOOKS"]
    with listening(files, classifier=str(files.classifier), index=files.index) as client:
        command = [*(sys.executable, "-m", "schemathesis.cli", "run"), "--checks", "all", *options]
        command += ["--max-examples", "30", "--seed", "1", "--continue-on-failure"]
        command += [f"{client.base_url}/openapi.json"]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert "6 selected / 6 total" in done.stdout
        requests = {
            (path, status): made.counted(
                client, "maestro_requests_total", endpoint=path, status=status
            )
            for path in ("/embed", "/classify", "/search")
            for status in ("200", "422")
        }
    if hooks:  # or "nothing found" would mean little
        assert min(requests.values()) >= 5, requests


@pytest.fixture
def page() -> Any:
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"there is no browser at {CHROMIUM}")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(_FLAGS))
        page = browser.new_page(viewport={"width": 1280, "height": 1600})
        page.set_default_timeout(PATIENCE)
        yield page
        browser.close()


def test_an_image_is_embedded_in_a_browser(files: Files, page: Any, tmp_path: Path) -> None:
    asked: list[str] = []
    wrong: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
    image = made.png(3)
    (tmp_path / "image.png").write_bytes(image)
    with listening(files, classifier=str(files.classifier), index=files.index) as client:
        page.goto(str(client.base_url))
        page.get_by_role("link", name="Try it in the browser").click()
        operation = page.locator("#operations-images-embed_embed_post")
        operation.locator(".opblock-summary-control").click()
        operation.get_by_role("button", name="Try it out").click()
        operation.locator("input[type=file]").set_input_files(tmp_path / "image.png")
        operation.locator("select").first.select_option("mean")
        operation.get_by_role("button", name="Execute").click()
        answer = operation.locator(".live-responses-table .response")
        assert answer.locator(".response-col_status").inner_text().startswith("200")
        shown = json.loads(answer.locator(".highlight-code code").inner_text())
        if where := os.environ.get("SCREENSHOTS"):
            page.screenshot(path=str(Path(where) / "docs.png"))
            page.goto(str(client.base_url))
            page.screenshot(path=str(Path(where) / "page.png"))
        assert all(url.startswith((str(client.base_url), "data:")) for url in asked), asked
    session = EncoderSession(files.encoder, "cpu", threads=1)
    expected = session(read_image(image, session.view())[None], ("mean",))["mean"][0]
    np.testing.assert_allclose(shown["images"][0]["embedding"], expected, rtol=0, atol=1e-5)
    assert not wrong
