"""What new data are held against: python -m pipelines.reference, in a project.

The profiles of the champion's data become those that drift is measured from, and the exam is set
where there is none yet: all before validation, which depends on the folder, so that dvc.lock of a
version agrees with what its commit holds.
"""

import argparse
import logging
from pathlib import Path

from mae.errors import DataError
from pipelines.comparison import EXAM, SHARDS
from pipelines.harness import leave_with

# Run as a program this module is `__main__`, which is not ours to log as.
LOG = logging.getLogger("pipelines.reference")


def main() -> None:
    from mae.data.validation.drift import accept
    from mae.evaluation.exam import set_exam

    parser = argparse.ArgumentParser(
        prog="python -m pipelines.reference", description="Set what new data are held against."
    )
    parser.add_argument("--profiles", type=Path, help="folder with profile-<dataset>.json")
    given = parser.parse_args()
    if given.profiles:
        try:
            accept(given.profiles, EXAM.parent)
        except DataError as error:  # of a champion from before an upgrade
            LOG.warning("drift from the champion's data cannot be measured: %s", error)
    if (SHARDS / "dataset.json").is_file() and (reason := set_exam(SHARDS, EXAM)):
        LOG.info("no exam: %s", reason)


if __name__ == "__main__":
    leave_with(main)
