"""index.html: one page without a server, a network or a second file."""

import yaml

from mae.report.benchmarked import Benchmarked
from mae.report.charts import pretraining_charts
from mae.report.findings import Findings
from mae.report.measured import sections_of
from mae.report.pictures import Sample, embedded, sample_images
from mae.report.story import Story
from mae.report.templating import render

_SAMPLES = 24
_CLASSES_SHOWN = 20
_CLASSES_CONFUSED = 20  # up to which the confusion matrix is drawn


def render_page(story: Story) -> str:
    """Return the page as HTML, a function of the story and the pictures it names."""
    findings = story.findings
    return render(
        "page.html.j2",
        story=story,
        findings=findings,
        sections=sections_of(story),
        samples=_samples(findings),
        charts=pretraining_charts(findings),
        speed=Benchmarked.of(findings),
        reconstruction=embedded(findings.reconstruction) if findings.reconstruction else None,
        params=yaml.safe_dump(story.provenance.params, sort_keys=True, allow_unicode=True),
        classes_shown=_CLASSES_SHOWN,
        classes_confused=_CLASSES_CONFUSED,
    )


def _samples(findings: Findings) -> list[Sample]:
    info = findings.datasets.get("images")
    if info is None or not info.splits.get("train"):
        return []
    return sample_images(info.folder, "train", _SAMPLES)
