"""The report with the gate's decision in it: python -m pipelines.decision_report, in a project."""

import argparse
from pathlib import Path

from pipelines.harness import leave_with


def main() -> None:
    from mae.report.build import build_report

    parser = argparse.ArgumentParser(
        prog="python -m pipelines.decision_report", description="Results and what was decided."
    )
    parser.add_argument("--decision", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    given = parser.parse_args()
    build_report(Path(), given.out, decision=given.decision)


if __name__ == "__main__":
    leave_with(main)
