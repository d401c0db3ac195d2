"""Retraining: run the pipeline, hold the result against the champion, promote it or keep that.

python -m pipelines.flows.retrain --once                     now, without a server
python -m pipelines.flows.retrain --dry-run                  say what it would do, change nothing
python -m pipelines.flows.retrain --serve --cron "0 3 * * *" each night, by a Prefect server
python -m pipelines.flows.retrain --approve RUN --reason WHY when a challenger waits for a person
"""

import argparse
import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from mae.errors import MaestroError
from pipelines.flows.server import LOCAL, losing_server_is_said, use_server
from pipelines.harness import leave_with

if TYPE_CHECKING:
    from prefect.schedules import Schedule


def main() -> None:
    parser = _parser()
    given = parser.parse_args()
    if given.serve != bool(given.cron or given.every):
        parser.error("--serve and one of --cron or --every belong together")
    if given.reason and not (given.approve or given.refuse):
        parser.error("--reason belongs to --approve or --refuse")
    root = given.root.resolve()
    if given.serve:
        use_server(given.server or os.environ.get("PREFECT_API_URL") or LOCAL)
        serve(root, given)
    elif given.dry_run:
        from pipelines.rehearsal import rehearse

        print("\n".join(rehearse(root)))
    elif given.approve or given.refuse:
        use_server(given.server)
        answer(root, given)
    else:
        recorded = use_server(given.server)

        from pipelines.flows.retraining_flow import retrain  # imports Prefect, which takes seconds

        call = retrain if recorded else retrain.fn
        with losing_server_is_said():
            call(root=str(root), anyway=given.anyway)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.flows.retrain", description="Retrain; promote what is better."
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--once", action="store_true", help="now, and leave (the default)")
    mode.add_argument("--dry-run", action="store_true", help="say what would be done")
    mode.add_argument("--serve", action="store_true", help="on a schedule, until stopped")
    mode.add_argument("--approve", metavar="RUN", help="let the challenger of a run serve")
    mode.add_argument("--refuse", metavar="RUN", help="let the champion stay")
    parser.add_argument("--reason", default="", help="of --approve or --refuse, kept with it")
    parser.add_argument("--anyway", action="store_true", help="also when there is nothing new")
    parser.add_argument("--root", type=Path, default=Path(), help="folder with dvc.yaml")
    parser.add_argument("--server", metavar="URL", help=f"Prefect server (--serve: {LOCAL})")
    when = parser.add_mutually_exclusive_group()
    when.add_argument("--cron", help="for --serve, such as '0 3 * * *'")
    when.add_argument("--every", type=float, metavar="MINUTES", help="for --serve")
    parser.add_argument("--timezone", default="UTC", help="of --cron, such as Europe/London")
    return parser


def answer(root: Path, given: argparse.Namespace) -> None:
    from pipelines.decision import Approval
    from pipelines.flows.retraining_flow import answer_by_hand

    said = Approval("approved" if given.approve else "refused", "command line", given.reason)
    print(answer_by_hand(root, given.approve or given.refuse, said).message)


def serve(root: Path, given: argparse.Namespace) -> None:
    """Wait for scheduled and triggered runs of `root`, one at a time; a second one is cancelled.

    Schedules stay active while nobody serves: what came due meanwhile is skipped, not made up.
    """
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.flows import EntrypointType

    from pipelines.flows.reconcile import reconcile
    from pipelines.flows.retraining_flow import retrain
    from pipelines.site import committed_params

    max_late = timedelta(minutes=committed_params(root).retrain.max_late_minutes)
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
