"""Champion and challenger sit the same exam: python -m pipelines.comparison, in a project.

Writes what came of it, or why it could not be held. A process of its own, so that the flow
needs neither torch nor the memory of two encoders.
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mae.errors import CheckpointError, DataError
from mae.files import read_json, write_json
from mae.params import Params, read_params
from pipelines.decision import Comparison, NotCompared
from pipelines.harness import leave_with

SHARDS, EXAM = Path("data/shards/images"), Path("data/reference/exam.json")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.comparison", description="Champion and challenger, one exam."
    )
    parser.add_argument("--champion", type=Path, required=True, help="folder of its encoder")
    parser.add_argument("--challenger", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    given = parser.parse_args()
    result = hold(read_params(), given.champion, given.challenger)
    write_json(given.out, asdict(result))


def hold(params: Params, champion: Path, challenger: Path) -> Comparison | NotCompared:
    """Measure both encoders on the exam of the project in the current folder."""
    rule = params.retrain.gate.comparison
    if rule is None:
        return NotCompared("retrain.gate.comparison is null", refused=False)
    if not (SHARDS / "dataset.json").is_file():
        return NotCompared(f"{SHARDS} holds no images", refused=False)
    from mae.data.dataset import read_dataset_info
    from mae.evaluation.exam import compare, correct, read_exam
    from mae.evaluation.labelled import why_not_classifiable
    from mae.training.devices import joined

    if reason := why_not_classifiable(read_dataset_info(SHARDS)):
        return NotCompared(reason, refused=False)
    if not EXAM.is_file():
        return NotCompared("there are no labelled test images to set an exam of", refused=False)
    try:
        exam = read_exam(SHARDS, EXAM)
        with joined(params.runtime.device) as place:
            ours = correct(params, SHARDS, challenger, exam, place)
            theirs = correct(params, SHARDS, champion, exam, place)
    except (DataError, CheckpointError) as error:
        return NotCompared(str(error), refused=True)
    margin = params.retrain.gate.margin
    found = compare(
        ours,
        theirs,
        margin=margin,
        confidence=rule.confidence,
        resamples=rule.resamples,
        seed=params.seed,
    )
    return Comparison(
        images=len(ours),
        champion_accuracy=float(theirs.double().mean()),
        challenger_accuracy=float(ours.double().mean()),
        difference=found.gain,
        low=found.low,
        high=found.high,
        win_share=found.win_share,
        confidence=rule.confidence,
        resamples=rule.resamples,
        margin=margin,
        feature=params.evaluate.linear.feature,
        only_champion=int((theirs & ~ours).sum()),
        only_challenger=int((ours & ~theirs).sum()),
        exam=exam.to_dict(),
    )


def read_result(path: Path) -> Comparison | NotCompared:
    content: dict[str, Any] = read_json(path)
    return NotCompared(**content) if "refused" in content else Comparison(**content)


if __name__ == "__main__":
    leave_with(main)
