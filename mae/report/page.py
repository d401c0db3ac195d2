"""index.html: one page without a server, a network or a second file."""

from pathlib import Path

import yaml

from mae.report.findings import Findings
from mae.report.pictures import Sample, embedded, sample_images
from mae.report.story import Story
from mae.report.templating import render

_SAMPLES = 24
_CLASSES_SHOWN = 20


def render_page(story: Story) -> str:
    """Return the page as HTML, a function of the story and the pictures it names."""
    findings = story.findings
    return render(
        "page.html.j2",
        story=story,
        findings=findings,
        samples=_samples(findings),
        chart=_chart(findings),
        reconstruction=_picture(findings.reconstruction),
        detections=_picture(findings.detections) if _has_detection(findings) else None,
        params=yaml.safe_dump(story.provenance.params, sort_keys=True, allow_unicode=True),
        classes_shown=_CLASSES_SHOWN,
    )


def _samples(findings: Findings) -> list[Sample]:
    info = findings.datasets.get("images")
    if info is None or not info.splits.get("train"):
        return []
    return sample_images(info.folder, "train", _SAMPLES)


def _chart(findings: Findings) -> str | None:
    if findings.curve is None or not findings.curve.steps:
        return None
    from mae.report.charts import loss_chart

    return loss_chart(findings.curve)


def _picture(path: Path | None) -> str | None:
    return embedded(path) if path else None


def _has_detection(findings: Findings) -> bool:
    detection = findings.results.get("detection")
    return detection is not None and not detection.skipped
