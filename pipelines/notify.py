"""Tells people what became of a run, through blocks that a Prefect server keeps.

    python -m pipelines.notify                  a word to every channel, to see that it arrives

`retrain.notify` in params.yaml says who is told of what. A block is one of Prefect's notification
blocks (`slack-webhook/team`, `ms-teams-webhook/team`), a `webhook/...`, which gets JSON, or
`email-server-credentials/...`. docs/operations.md says how they are made.
"""

import argparse
import asyncio
import contextvars
import html
import logging
import os
import smtplib
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mae.errors import MaestroError
from mae.params import read_params
from mae.params.orchestration import Event, NotifyParams
from pipelines.flows.server import LOCAL, use_server
from pipelines.harness import leave_with

LOG = logging.getLogger(__name__)
SECONDS = 30.0  # for each channel


def notify(
    event: Event,
    title: str,
    text: str,
    channels: Sequence[NotifyParams],
    details: Mapping[str, object] | None = None,
) -> None:
    """Tell those of `channels` that want to know of `event`; `details` go to webhooks as well.

    Never raises: what could not be sent is logged. Blocks are kept by a Prefect server; without
    one (PREFECT_API_URL) nothing is sent, which is said once.
    """
    wanted = [channel for channel in channels if event in channel.events]
    if not wanted:
        return
    if not _has_server():
        _say_once("notifications need a Prefect server (PREFECT_API_URL): none are sent")
        return
    message = {**(details or {}), "event": event, "title": title, "text": text}
    for block, problem in _deliver(wanted, message):
        if problem:
            LOG.warning("%s was not told of '%s' (%s): %s", block, title, event, problem)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.notify", description="Try the channels of retrain.notify."
    )
    parser.add_argument("--server", metavar="URL", help=f"Prefect server ({LOCAL})")
    parser.add_argument("--root", type=Path, default=Path(), help="folder with params.yaml")
    given = parser.parse_args()
    channels = read_params(given.root / "params.yaml").retrain.notify
    if not channels:
        raise MaestroError("retrain.notify in params.yaml names nobody")
    use_server(given.server or os.environ.get("PREFECT_API_URL") or LOCAL)
    project = given.root.resolve().name
    message = {"event": "trial", "title": project, "text": "This is a trial: it has arrived."}
    told = _deliver(channels, message)
    for block, problem in told:
        print(f"{block}: {problem or 'told'}")
    if any(problem for _, problem in told):
        raise MaestroError("not everybody could be told")


def _deliver(
    channels: Sequence[NotifyParams], message: dict[str, Any]
) -> list[tuple[str, str | None]]:
    """Send the message to all at once; return each block's name with what went wrong, or None."""
    sending = [_Sending(channel, message) for channel in channels]
    for one in sending:
        one.begin()
    return [(one.block, one.end()) for one in sending]


def _has_server() -> bool:
    from prefect.settings import get_current_settings  # takes seconds

    return bool(get_current_settings().api.url)


@cache
def _say_once(text: str) -> None:
    LOG.warning(text)


class _Sending:
    """One message on its way, in a thread that nobody has to wait for: SMTP knows no timeout."""

    def __init__(self, channel: NotifyParams, message: dict[str, Any]) -> None:
        self.block = channel.block
        self._problem: str | None = f"no answer within {SECONDS:g} s"

        def send() -> None:
            try:
                asyncio.run(_send(channel, message))
                self._problem = None
            except Exception as error:
                self._problem = _reason(error)

        # Settings of Prefect, and the flow run around, are looked for in the context.
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(send,), daemon=True)

    def begin(self) -> None:
        self._thread.start()

    def end(self) -> str | None:
        """Wait for it; return what went wrong, or None."""
        self._thread.join(SECONDS)
        return self._problem


def _reason(error: Exception) -> str:
    said = " ".join((getattr(error, "log", "") or str(error)).split())  # Prefect's keep it apart
    return said[:300] if said else type(error).__name__


async def _send(channel: NotifyParams, message: dict[str, Any]) -> None:
    from prefect.blocks.abstract import NotificationBlock
    from prefect.blocks.webhook import Webhook

    block = await _load(channel.block)
    if isinstance(block, NotificationBlock):
        with block.raise_on_failure():
            await block.notify(message["text"], subject=message["title"])
    elif isinstance(block, Webhook):
        answer = await block.call(message)
        if answer.is_error:  # httpx would name the address, which is a secret
            raise MaestroError(f"answered {answer.status_code} {answer.reason_phrase}")
    elif hasattr(block, "get_server"):
        await _send_mail(block, channel.to, message)
    else:
        raise MaestroError(
            "no block that a message can be sent through: use a notification block, webhook or "
            "email-server-credentials"
        )


async def _load(name: str) -> Any:
    import prefect.blocks.notifications  # noqa: F401  (its types are known once imported)
    from prefect.blocks.core import Block

    kind, _, rest = name.partition("/")
    if not rest:
        raise MaestroError("a block is named type/name, as slack-webhook/team")
    if kind == "email-server-credentials":
        try:
            import prefect_email  # noqa: F401
        except ImportError:
            raise MaestroError("needs prefect-email: pip install 'maestro-mae[email]'") from None
    return await Block.aload(name)


async def _send_mail(server: Any, to: Sequence[str], message: dict[str, Any]) -> None:
    from prefect_email import email_send_message

    if not to:
        raise MaestroError("an e-mail needs addresses: give the channel in retrain.notify a `to`")
    try:
        await email_send_message.fn(
            subject=message["title"],
            msg=f"<pre>{html.escape(message['text'])}</pre>",
            msg_plain=message["text"],
            email_server_credentials=server,
            email_from=server.username or to[0],
            email_to=list(to),
        )
    except smtplib.SMTPRecipientsRefused as error:
        refused = "; ".join(
            f"{address}: {code} {said.decode(errors='replace')}"
            for address, (code, said) in error.recipients.items()
        )
        raise MaestroError(f"refused by the mail server: {refused}") from None


if __name__ == "__main__":
    leave_with(main)
