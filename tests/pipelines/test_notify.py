"""Notifications: through blocks of a real Prefect server to receivers on the loopback address."""

import email
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_LOGGING_TO_API_ENABLED,
    temporary_settings,
)

import pipelines.notify
from mae.params.orchestration import NotifyParams
from pipelines.notify import notify
from tests.pipelines.project import Project
from tests.pipelines.receivers import http_receiver, silent_server, slack, smtp_receiver

TITLE, TEXT = "encoder@v0.2.0 serves", "accuracy 0.91 <0.90>\nsecond line"


def channel(block: str, *to: str, events: tuple[str, ...] = ("promoted",)) -> NotifyParams:
    return NotifyParams.model_validate({"block": block, "events": events, "to": to})


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What is logged. (Prefect takes the handlers of others from the root logger.)"""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    pipelines.notify.LOG.addHandler(handler)
    yield messages
    pipelines.notify.LOG.removeHandler(handler)


@pytest.fixture
def server(prefect_server: str) -> Iterator[str]:
    with temporary_settings(
        {PREFECT_API_URL: prefect_server, PREFECT_LOGGING_TO_API_ENABLED: False}
    ):
        yield prefect_server


# --- without a server ---------------------------------------------------------------------------


def test_nothing_is_imported_for_nobody() -> None:
    program = """
import sys
from mae.params.orchestration import NotifyParams
from pipelines.notify import notify
notify("failed", "title", "text", ())
notify("failed", "title", "text", [NotifyParams(block="webhook/x", events=("promoted",))])
assert "prefect" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_that_a_server_is_needed_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    pipelines.notify._say_once.cache_clear()
    with temporary_settings({PREFECT_API_URL: None}):
        for _ in range(2):
            notify("promoted", TITLE, TEXT, [channel("slack-webhook/team")])
    assert said == ["notifications need a Prefect server (PREFECT_API_URL): none are sent"]
    assert not list(tmp_path.iterdir()), "an ephemeral server leaves its database"


def test_a_server_that_is_gone_never_raises(
    monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setattr(pipelines.notify, "SECONDS", 0.5)
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        notify("promoted", TITLE, TEXT, [channel("webhook/ops")])
    assert "webhook/ops was not told of 'encoder@v0.2.0 serves' (promoted)" in said[-1]


# --- with one -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_webhook_gets_json(server: str, said: list[str]) -> None:
    from prefect.blocks.webhook import Webhook

    with http_receiver() as receiver:
        Webhook(url=f"{receiver.url}/token").save("ops", overwrite=True)
        channels = [channel("webhook/ops"), channel("webhook/ops", events=("failed",))]
        notify("promoted", TITLE, TEXT, channels, {"version": "v0.2.0", "event": "no other"})
        (only,) = receiver.received
        assert only.path == "/token"
        assert only.json() == {
            "event": "promoted",
            "title": TITLE,
            "text": TEXT,
            "version": "v0.2.0",
        }
        assert said == []
        receiver.answer = 500
        notify("promoted", TITLE, TEXT, channels)
    assert "webhook/ops was not told" in said[-1] and "answered 500" in said[-1]
    assert "/token" not in said[-1]


@pytest.mark.slow
def test_slack(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    from prefect.blocks.notifications import SlackWebhook

    with slack(tmp_path) as (receiver, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        url = "https://hooks.slack.com/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ"
        SlackWebhook(url=url).save("team", overwrite=True)
        notify("promoted", TITLE, TEXT, [channel("slack-webhook/team")])
        assert said == []
        (only,) = receiver.received
        assert (only.host, only.path) == (
            "hooks.slack.com",
            url.removeprefix("https://hooks.slack.com"),
        )
        (attachment,) = only.json()["attachments"]
        assert attachment["title"] == TITLE
        assert "accuracy 0.91" in attachment["text"] and "second line" in attachment["text"]
        receiver.answer = 403
        notify("promoted", TITLE, TEXT, [channel("slack-webhook/team")])
    assert "slack-webhook/team was not told" in said[-1] and "403" in said[-1]
    assert "T1JJ3T3L2" not in said[-1]


@pytest.mark.slow
def test_e_mail(server: str, monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    from prefect_email import EmailServerCredentials

    with smtp_receiver() as receiver:
        EmailServerCredentials(
            smtp_server="127.0.0.1", smtp_type="INSECURE", smtp_port=receiver.port
        ).save("ops", overwrite=True)
        people = ("ada@example.org", "bob@example.org")
        notify("promoted", TITLE, TEXT, [channel("email-server-credentials/ops", *people)])
        assert said == []
        assert receiver.recipients == list(people)
        mail = email.message_from_string(receiver.mails[0])
        assert mail["Subject"] == TITLE
        plain, formatted = (part.get_payload(decode=True).decode() for part in mail.get_payload())
        assert plain.replace("\r\n", "\n").strip() == TEXT
        assert "accuracy 0.91 &lt;0.90&gt;" in formatted
        notify("promoted", TITLE, TEXT, [channel("email-server-credentials/ops")])
        assert "needs addresses" in said[-1]
        nobody = channel("email-server-credentials/ops", "eve@refused.example")
        notify("promoted", TITLE, TEXT, [nobody])
        assert "eve@refused.example: 550 no such person" in said[-1]
    with silent_server() as port:
        EmailServerCredentials(smtp_server="127.0.0.1", smtp_type="INSECURE", smtp_port=port).save(
            "silent", overwrite=True
        )
        monkeypatch.setattr(pipelines.notify, "SECONDS", 2.0)
        notify("promoted", TITLE, TEXT, [channel("email-server-credentials/silent", *people)])
    assert "no answer within 2 s" in said[-1]


@pytest.mark.slow
def test_one_bad_channel_does_not_spoil_the_others(server: str, said: list[str]) -> None:
    from prefect.blocks.system import Secret
    from prefect.blocks.webhook import Webhook

    Secret(value="a secret").save("mine", overwrite=True)
    with http_receiver() as receiver:
        Webhook(url=receiver.url).save("good", overwrite=True)
        names = ("webhook/nobody-made-it", "secret/mine", "team", "webhook/good")
        notify("promoted", TITLE, TEXT, [channel(name) for name in names])
        assert len(receiver.received) == 1
    assert [message.split()[0] for message in said] == list(names[:3])
    assert "no block that a message can be sent through" in said[1]
    assert "a secret" not in "".join(said)


@pytest.mark.slow
def test_from_inside_a_flow(server: str) -> None:
    from prefect import flow
    from prefect.blocks.webhook import Webhook

    @flow
    def tells() -> None:
        notify("failed", TITLE, TEXT, [channel("webhook/flow", events=("failed",))])

    with http_receiver() as receiver:
        Webhook(url=receiver.url).save("flow", overwrite=True)
        tells()
        assert [one.json()["event"] for one in receiver.received] == ["failed"]


@pytest.mark.slow
def test_a_trial_of_every_channel(server: str, project: Project) -> None:
    from prefect.blocks.webhook import Webhook

    def trial() -> subprocess.CompletedProcess[str]:
        return project.python("-m", "pipelines.notify", "--server", server, check=False)

    def told(*names: str) -> None:
        params = yaml.safe_load((project.root / "params.yaml").read_text())
        params["retrain"]["notify"] = [{"block": name, "events": ["failed"]} for name in names]
        (project.root / "params.yaml").write_text(yaml.safe_dump(params))

    assert trial().returncode == 1 and "names nobody" in trial().stderr
    with http_receiver() as receiver:
        Webhook(url=receiver.url).save("trial", overwrite=True)
        told("webhook/trial")
        assert trial().stdout == "webhook/trial: told\n"
        assert [one.json()["event"] for one in receiver.received] == ["trial"]
        told("webhook/trial", "webhook/none")
        done = trial()
    assert done.returncode == 1 and "webhook/trial: told" in done.stdout
    assert "Unable to find block document" in done.stdout
