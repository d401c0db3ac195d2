"""The page and the card tell what was found, what was skipped and what is missing."""

import html
import html.parser
import re
import shutil
from pathlib import Path

import pytest

from mae.errors import DataError, MaestroError
from mae.files import read_json, write_json
from mae.model.artifact import read_info
from mae.report.build import CARD, PAGE, build_report
from mae.report.charts import Line, line_chart, running_mean

ROOT = Path(__file__).parents[2]


@pytest.fixture
def copy(project: Path, tmp_path: Path) -> Path:
    shutil.copytree(project, tmp_path / "copy")
    return tmp_path / "copy"


def build(root: Path) -> tuple[str, str]:
    folder = root / "artifacts/report"
    build_report(root, folder)
    return (folder / PAGE).read_text("utf-8"), (folder / CARD).read_text("utf-8")


def words(page: str) -> str:
    """Return what a reader reads."""
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    return html.unescape(text).replace("\u00a0", " ")


class Balance(html.parser.HTMLParser):
    """Notes tags that are closed out of order, and every place a page is loaded from."""

    EMPTY = frozenset({"meta", "img", "path", "use", "br", "link", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in self.EMPTY:
            self.open.append(tag)
        self.loads += [v or "" for k, v in attributes if k in ("src", "href", "srcset", "data")]

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.loads += [v or "" for k, v in attributes if k in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.EMPTY:
            assert self.open.pop() == tag


def test_page_is_whole_and_loads_nothing(copy: Path) -> None:
    page, _ = build(copy)
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert all(place.startswith(("data:image/", "#")) for place in parser.loads)
    assert "<script" not in page
    assert "url(" not in page.replace("url(#", "")
    assert "@import" not in page
    assert 'name="viewport"' in page
    assert "prefers-color-scheme: dark" in page


def test_page_tells_what_was_found(copy: Path) -> None:
    page, _ = build(copy)
    text = words(page)
    for part in (
        "Was pretraining worth it? Yes",
        "90.3 % pretrained against 61.0 % from scratch, +29.3 points (± 4.5 over 3 seeds)",
        "With 1 % of the labels it gains 7 points.",
        "which may be chance",
        "Detection was skipped: data.scenes.source is none",
        "not an image 1 dark/text.png",
        "the share of blank images: look at the manifest (warning) 0.2 ≤ 0.05",
        "1 further check, with nothing found",
        "differs from torch by at most 2.3e-06",
        "by seed. Pretrained: 89.1, 90.3, 91.5. From scratch: 58.0, 61.0, 64.0",
        "Published for this setting: 94.0 to 97.0 %; measured: 98.2 %, above the band (A paper, "
        "table 3).",
        "Fine-tuning, 400 labels, over all seeds. Mean accuracy of the classes: 95.0 %",
        "Most often confused: bright taken for dark (10.0 %)",
        "A CPU, 2 cores, no GPU",
        "bright",
    ):
        assert part in text, part
    assert "has not been made yet" not in text


def test_card_tells_what_was_found(copy: Path) -> None:
    _, card = build(copy)
    assert "**Yes.** Fine-tuning, 10 labels per class" in card
    assert "| Linear probe | top-1 accuracy | 87.0 | 58.0 (random encoder) | +29.0 ± 1.8 |" in card
    assert "dtype=np.uint8)  # N, C, H, W" in card
    assert "Detection was skipped" in card
    for heading in ("Intended use", "Limits", "Licence", "How to use it", "Training data"):
        assert f"## {heading}" in card


def test_card_code_runs(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines a reader would copy, on a real export."""
    from mae.export.description import EncoderDescription
    from mae.export.onnx_export import PixelEncoder, write_onnx
    from mae.model.artifact import load_encoder

    artifact = load_encoder(copy / "artifacts/pretrain")
    model = PixelEncoder(artifact.encoder, artifact.statistics)
    write_onnx(copy / "encoder.onnx", model, EncoderDescription.of(artifact), opset=20)
    code = re.search(r"```python\n(.*?)```", build(copy)[1], re.DOTALL)
    assert code
    monkeypatch.chdir(copy)
    names: dict = {}
    exec(code[1], names)
    assert names["cls"].shape == (1, 16)
    assert names["patches"].shape == (1, 16, 4, 6)


def test_same_findings_give_the_same_bytes(copy: Path) -> None:
    assert build(copy) == build(copy)


def test_names_from_the_data_are_escaped(copy: Path) -> None:
    path = copy / "artifacts/results/detection.json"
    write_json(path, {"skipped": "<script>alert(1)</script> & more", "numbers": {}, "detail": {}})
    page, _ = build(copy)
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in page


@pytest.mark.parametrize(
    ("gone", "stage"),
    [
        ("data/shards/scenes", "shard@scenes"),
        ("data/validation", "validate"),
        ("artifacts/pretrain", "pretrain"),
        ("artifacts/plots", "pretrain"),
        ("artifacts/results/knn.json", "evaluate@knn"),
        ("artifacts/results/detection.json", "detect"),
        ("artifacts/export", "export"),
        ("artifacts/benchmark", "benchmark"),
    ],
)
def test_what_is_missing_is_said(copy: Path, gone: str, stage: str) -> None:
    shutil.copy(ROOT / "params.yaml", copy)  # which says what protocols are wanted
    path = copy / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    page, card = build(copy)
    assert f"run `dvc repro {stage}`" in page
    assert card.startswith("# Model card")


def test_nothing_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MaestroError, match="nothing to report on"):
        build(tmp_path)
    assert not (tmp_path / "artifacts").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("results/knn.json", "{"),
        ("results/knn.json", '{"comparisons": [{"task": "k-NN", "pretrained": [0.5]}]}'),
        ("results/knn.json", '{"comparisons": [{"pretrained": [], "values": []}]}'),
        ("results/finetune.json", '{"detail": {"all": {"arms": {}}}}'),
        ("results/robustness.json", '{"numbers": {}, "detail": {}}'),
        ("plots/pretrain/loss.csv", "step,loss\n1,abc\n"),
        ("plots/pretrain/observed.csv", "step,val_loss\n,1\n"),
    ],
)
def test_damaged_files_are_named(copy: Path, name: str, content: str) -> None:
    (copy / "artifacts" / name).write_text(content)
    with pytest.raises(DataError, match=f"{name} is damaged"):
        build(copy)


def test_numbers_of_other_data_or_code_are_pointed_out(copy: Path) -> None:
    path = copy / "artifacts/results/knn.json"
    content = path.read_text().replace('"commit": "0123456789', '"commit": "fedcba9876')
    path.write_text(re.sub(r'"data_fingerprint": "\w+"', '"data_fingerprint": "old"', content))
    page, card = build(copy)
    for text in (page, card):
        assert "knn: measured on other data" in text
        assert "2 different versions of the code" in text


def test_unlabelled_data_and_no_results(copy: Path) -> None:
    for path in (copy / "artifacts/results").iterdir():
        write_json(path, {"skipped": "the images have no labels", "numbers": {}, "detail": {}})
    page, card = build(copy)
    assert "Not measured." in page
    assert "**Not measured.**" in card


def test_running_mean_is_a_mean() -> None:
    values = [float(i % 7) for i in range(200)]
    smooth = running_mean(values)
    assert len(smooth) == 200
    assert smooth[100] == pytest.approx(sum(values[95:106]) / 11)
    assert running_mean([3.0]) == [3.0]


def test_chart_takes_the_colours_of_the_page() -> None:
    lines = [Line("training", [0, 10, 20], [1.0, 0.5, 0.4], noisy=True), Line("held", [9], [0.7])]
    chart = line_chart(lines, "loss", "The loss")
    assert chart and chart.svg.startswith("<svg viewBox=")
    assert "var(--accent)" in chart.svg and "var(--second)" in chart.svg
    assert not re.search(r"#0[147a]0[258b]0[369c]", chart.svg)
    assert chart == line_chart(lines, "loss", "The loss")
    assert line_chart([Line("none", [], [])], "loss", "Nothing") is None


def test_curves_of_pretraining_are_all_there(copy: Path) -> None:
    page, _ = build(copy)
    charts = re.findall(r'<svg viewBox.*?aria-label="([^"]+)"', page, re.DOTALL)
    assert len(charts) == 3
    for name in ("training images", "held-out images", "RankMe", "effective rank"):
        assert name in page
    names = re.findall(r'\bid="([^"]+)"', page)
    assert len(names) == len(set(names)), "a name is taken twice"
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', page)
    assert set(used) <= set(names)


def test_a_run_that_was_never_looked_at_has_its_loss_alone(copy: Path) -> None:
    (copy / "artifacts/plots/pretrain/observed.csv").write_text("step\n")
    page, _ = build(copy)
    assert page.count("<svg viewBox") == 1
    assert "held-out images</text>" not in page


def test_only_protocols_that_are_asked_for_are_missed(copy: Path) -> None:
    (copy / "artifacts/results/knn.json").unlink()
    params = copy / "params.yaml"
    assert "evaluate@knn" in build(copy)[0]
    params.write_text(params.read_text().replace("  - knn\n", ""))
    assert "evaluate@knn" not in build(copy)[0]
    params.unlink()
    assert "has not been made yet" not in build(copy)[0]


def test_many_classes_are_told_without_a_matrix(copy: Path) -> None:
    page, _ = build(copy)
    assert page.count('scope="row"') == 2
    path = copy / "artifacts/results/finetune.json"
    content = read_json(path)
    for run in content["detail"]["all"]["arms"]["pretrained"]["runs"]:
        run["confusion"] = None
    write_json(path, content)
    page, _ = build(copy)
    assert 'scope="row"' not in page
    assert "Mean accuracy of the classes: 95.0 %" in page


def test_a_protocol_of_tomorrow_is_told_too(copy: Path) -> None:
    path = copy / "artifacts/results/depth_estimation.json"
    compared = {"task": "Depth", "metric": "share within 25 %", "pretrained": [0.7]}
    compared |= {"baseline": "from scratch", "values": [0.4]}
    write_json(path, {"numbers": {"share": 0.7}, "comparisons": [compared]})
    page, _ = build(copy)
    assert "<strong>Depth</strong>" in page
    assert "Depth estimation: every number" in page


def test_numbers_of_another_encoder_are_pointed_out(copy: Path) -> None:
    path = copy / "artifacts/results/knn.json"
    encoder = read_info(copy / "artifacts/pretrain")
    write_json(path, {**read_json(path), "encoder": encoder})
    assert "another encoder" not in build(copy)[0]
    encoder["training"]["steps"] = 1
    write_json(path, {**read_json(path), "encoder": encoder})
    assert "knn: measured on another encoder" in build(copy)[0]
