"""artifacts/report: the page and the model card, functions of what the stages left."""

from pathlib import Path

from mae.files import replacing_folder
from mae.report.decision import read_decision
from mae.report.findings import read_findings, require_something
from mae.report.model_card import render_card
from mae.report.page import render_page
from mae.report.story import Story, tell

PAGE, CARD = "index.html", "MODEL_CARD.md"


def build_report(root: Path, folder: Path, decision: Path | None = None) -> Story:
    """Write `folder` with index.html and MODEL_CARD.md from what the stages left below `root`.

    decision: the file in which the gate wrote what became of this encoder. Raises MaestroError
    when there is nothing, DataError when a file is damaged. What a stage has not made yet, or
    skipped, is said in both.
    """
    findings = read_findings(root)
    require_something(findings)
    story = tell(findings, read_decision(decision) if decision else None)
    with replacing_folder(folder) as temporary:
        (temporary / PAGE).write_text(render_page(story), encoding="utf-8")
        (temporary / CARD).write_text(render_card(story), encoding="utf-8")
    return story
