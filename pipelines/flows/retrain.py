"""Retraining: run the pipeline, hold the result against the champion, promote it or keep that.

python -m pipelines.flows.retrain --once                     now, without a server
python -m pipelines.flows.retrain --serve --cron "0 3 * * *" each night, by a Prefect server
"""

import argparse
import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from mae.errors import MaestroError
from pipelines.flows.server import LOCAL, use_server
from pipelines.harness import leave_with

if TYPE_CHECKING:
    from prefect.schedules import Schedule


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.flows.retrain", description="Retrain; promote what is better."
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--once", action="store_true", help="now, and leave (the default)")
    mode.add_argument("--serve", action="store_true", help="on a schedule, until stopped")
    parser.add_argument("--root", type=Path, default=Path(), help="folder with dvc.yaml")
    parser.add_argument("--server", metavar="URL", help=f"Prefect server (--serve: {LOCAL})")
    when = parser.add_mutually_exclusive_group()
    when.add_argument("--cron", help="for --serve, such as '0 3 * * *'")
    when.add_argument("--every", type=float, metavar="MINUTES", help="for --serve")
    parser.add_argument("--timezone", default="UTC", help="of --cron, such as Europe/London")
    given = parser.parse_args()
    if given.serve != bool(given.cron or given.every):
        parser.error("--serve and one of --cron or --every belong together")
    root = given.root.resolve()
    if given.serve:
        use_server(given.server or os.environ.get("PREFECT_API_URL") or LOCAL)
        serve(root, given)
        return
    recorded = use_server(given.server)

    from pipelines.flows.definitions import retrain  # imports Prefect, which takes seconds

    (retrain if recorded else retrain.fn)(root=str(root))


def serve(root: Path, given: argparse.Namespace) -> None:
    """Wait for scheduled and triggered runs of `root`, one at a time; a second one is cancelled.

    Schedules stay active while nobody serves: what came due meanwhile is skipped, not made up.
    """
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.flows import EntrypointType

    from pipelines.flows.definitions import retrain
    from pipelines.flows.reconcile import reconcile
    from pipelines.retraining import retrain_params

    max_late = timedelta(minutes=retrain_params(root).max_late_minutes)
    schedule = _schedule(given)
    reconcile(f"{retrain.name}/{root.name}", max_late)
    retrain.serve(
        name=root.name,
        schedule=schedule,
        parameters={"root": str(root)},
        global_limit=ConcurrencyLimitConfig(
            limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW
        ),
        pause_on_shutdown=False,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )


def _schedule(given: argparse.Namespace) -> "Schedule":
    from prefect.schedules import Cron, Interval

    try:
        if given.cron:
            return Cron(given.cron, timezone=given.timezone)
        return Interval(timedelta(minutes=given.every))
    except ValueError as error:
        raise MaestroError(f"this is no schedule: {error}") from None


if __name__ == "__main__":
    leave_with(main)
