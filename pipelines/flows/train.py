"""The pipeline as a Prefect flow: every stage of dvc.yaml a task, in the order DVC knows.

python -m pipelines.flows.train                      no server at all
python -m pipelines.flows.train --server URL         recorded by a Prefect server
python -m pipelines.flows.train --stage evaluate@knn that stage and what it needs

How often a stage is tried, how long it may take and so on: `flows` in params.yaml.
"""

import argparse
from pathlib import Path

from pipelines.flows.server import losing_server_is_said, use_server
from pipelines.harness import leave_with


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.flows.train", description="Run the pipeline of dvc.yaml."
    )
    parser.add_argument("--root", type=Path, default=Path(), help="folder with dvc.yaml")
    parser.add_argument("--workers", type=int, help="stages at a time (as in params.yaml)")
    parser.add_argument("--stage", action="append", help="only this and what it needs; repeatable")
    parser.add_argument(
        "--server", metavar="URL", help="Prefect server, as http://127.0.0.1:4200/api"
    )
    given = parser.parse_args()
    if given.workers is not None and given.workers < 1:
        parser.error("--workers must be at least 1")
    recorded = use_server(given.server)

    from pipelines.flows.definitions import train  # imports Prefect, which takes seconds

    call = train if recorded else train.fn
    with losing_server_is_said():
        call(root=str(given.root.resolve()), workers=given.workers, stages=given.stage)


if __name__ == "__main__":
    leave_with(main)
