"""What every protocol really writes becomes tables, pictures and sentences."""

import re
import shutil
from pathlib import Path
from typing import get_args

import pytest

from mae.files import read_json, write_json
from mae.params.evaluation import Protocol
from mae.report.build import PAGE, build_report
from mae.report.classified import classified
from mae.report.findings import Findings, read_findings
from mae.report.measured import Measured, Table, sections_of
from mae.report.protocols import PROTOCOLS, SECTIONS
from mae.report.story import tell


@pytest.fixture(scope="module")
def told(measured: Path) -> dict[str, Measured]:
    sections = sections_of(tell(read_findings(measured)))
    return {one.result.protocol: one for _, parts in sections for one in parts}


def rows(table: Table) -> dict[str, list[str]]:
    return {row[0]: row[1:] for row in table.rows}


def test_every_protocol_has_its_place() -> None:
    placed = [protocol for section in SECTIONS for protocol in section.protocols]
    assert sorted(placed) == sorted(PROTOCOLS) == sorted({*get_args(Protocol), "detection"})


def test_the_page_tells_every_protocol(measured: Path, tmp_path: Path) -> None:
    build_report(measured, tmp_path / "report")
    page = (tmp_path / "report" / PAGE).read_text("utf-8")
    for protocol in get_args(Protocol):
        assert f"{PROTOCOLS[protocol].title}: every number" in page
    for section in SECTIONS:
        assert f'<section id="{section.name}">' in page
        assert f'href="#{section.name}"' in page
    assert page.count('<img class="paper"') == 5
    verdict = read_json(measured / "artifacts/results/label_budget.json")["detail"]["verdict"]
    assert verdict in re.sub("&#39;", "'", page)


def test_pictures_are_where_protocols_draw_them(told: dict[str, Measured]) -> None:
    drawn = {name for name, one in told.items() if one.pictures}
    assert drawn == {"label_budget", "partial", "quality", "retrieval", "robustness"}
    assert told["label_budget"].pictures[0].wide
    assert not told["partial"].pictures[0].wide


def test_robustness_means_over_severities(told: dict[str, Measured]) -> None:
    one = told["robustness"]
    (table,) = one.tables
    assert table.head == ["", "pretrained", "raw pixels", "random encoder"]
    numbers = one.result.numbers
    names = ("accuracy_blur", "accuracy_blur_pixels", "accuracy_blur_random")
    assert rows(table)["blur"] == [f"{100 * numbers[name]:.1f}" for name in names]
    assert list(rows(table)) == ["clean", "blur", "noise", "lost by corruption"]


def test_test_time_training_with_and_without(told: dict[str, Measured]) -> None:
    one = told["test_time"]
    (table,) = one.tables
    assert list(rows(table)) == ["clean", "blur"]
    without, adapted, changed, p = rows(table)["blur"]
    numbers = one.result.numbers
    assert without == f"{100 * numbers['accuracy_blur_frozen']:.1f}"
    assert adapted == f"{100 * numbers['accuracy_blur']:.1f}"
    gained, lost = map(int, changed.split(" / "))
    assert gained - lost == round(4 * (numbers["accuracy_blur"] - numbers["accuracy_blur_frozen"]))
    assert 0 < float(p) <= 1


def test_retrieval_by_depth(told: dict[str, Measured]) -> None:
    one = told["retrieval"]
    (table,) = one.tables
    assert list(rows(table)) == ["mean average precision", "recall at 1", "recall at 2"]
    pixels = table.head.index("raw pixels") - 1
    value = one.result.numbers["recall_at_2_pixels"]
    assert rows(table)["recall at 2"][pixels] == f"{100 * value:.1f}"
    gallery = one.result.detail["images"]["gallery"]
    assert one.remarks == [f"K of 500 is left out: the gallery has {gallery} images."]


def test_quality_of_both_features(told: dict[str, Measured]) -> None:
    one = told["quality"]
    table, likeness = one.tables
    assert table.head == ["", "pretrained", "random encoder"]
    rank = one.result.numbers["rank_me_cls"]
    assert float(rows(table)["RankMe, cls feature"][0]) == pytest.approx(rank, rel=1e-3)
    assert list(rows(likeness)) == ["random weights"]


def test_what_is_left_out_is_said(told: dict[str, Measured]) -> None:
    assert "100 labels per class were not measured" in told["few_shot"].left_out[0]
    assert told["partial"].left_out == ["9 blocks are left out: the encoder has 1."]
    (row,) = told["lora"].tables[0].rows
    assert int(row[0].replace(",", "")) == told["lora"].result.numbers["parameters"]


@pytest.mark.parametrize(
    ("gone", "how"),
    [
        ((), r"Fine-tuning, 2\d labels"),
        (("finetune",), "Linear probe"),
        (("finetune", "linear_probe"), "Linear classifiers"),
        (("finetune", "linear_probe", "linear"), "k-NN"),
        (("finetune", "linear_probe", "linear", "knn"), None),
    ],
)
def test_classes_by_the_most_telling_protocol(
    measured: Path, gone: tuple[str, ...], how: str | None
) -> None:
    findings = read_findings(measured)
    for protocol in gone:
        del findings.results[protocol]
    found = classified(findings)
    if how is None:
        assert found is None
        return
    assert found and re.fullmatch(how, found.how)
    assert found.classes == ["bright", "dark"]
    runs = 2 if found.protocol == "linear_probe" else 1
    images = findings.results["knn" if "knn" not in gone else "finetune"].detail["images"]["test"]
    assert found.confusion and sum(map(sum, found.confusion)) == runs * images
    share = [found.confusion[i][i] / sum(found.confusion[i]) for i in range(2)]
    assert found.balanced == pytest.approx(sum(share) / 2)


def test_classes_keep_the_order_of_the_matrix(measured: Path) -> None:
    """JSON sorts names; the matrix is in the order of the dataset's classes."""
    findings = read_findings(measured)
    info = findings.datasets["images"]
    object.__setattr__(info, "classes", ("dark", "bright"))
    found = classified(findings)
    assert found and found.classes == ["dark", "bright"] and found.confusion
    object.__setattr__(info, "classes", ("dark", "light"))
    other = classified(findings)
    assert other and other.confusion is None and other.calibration_error is not None
    assert classified(Findings(findings.root, results=findings.results))


def test_skipped_protocols_say_why_and_show_what_they_drew(measured: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(measured, root)
    for path in (root / "artifacts/results").iterdir():
        write_json(path, {"skipped": "the images have no labels"})
    build_report(root, root / "artifacts/report")
    page = (root / "artifacts/report" / PAGE).read_text("utf-8")
    assert "Not measured." in page
    for protocol in get_args(Protocol):
        assert f"{PROTOCOLS[protocol].title} was skipped: the images have no labels" in page
    assert page.count('<img class="paper"') == 5
    assert "every number" not in page
