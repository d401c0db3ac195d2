"""DVC stage `report`: everything measured -> artifacts/report, a page and a model card."""

import logging
from pathlib import Path

from mae.params import Params
from mae.report.build import PAGE, build_report
from pipelines.harness import run_stage

# Run as a script this module is `__main__`, which is not ours to log as.
LOG = logging.getLogger("pipelines.stages.report")

FOLDER = Path("artifacts/report")


def main(params: Params, arguments: list[str]) -> None:
    story = build_report(Path(), FOLDER)
    LOG.info("was pretraining worth it? %s. %s", story.answer.short, story.answer.sentence)
    for sentence in story.findings.missing:
        LOG.warning("not in the report: %s", sentence)
    LOG.info("open %s", FOLDER / PAGE)


if __name__ == "__main__":
    run_stage("report", main)
