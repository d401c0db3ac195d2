"""What a Prefect server does by itself for a project: it finds lost runs and tells of them.

Automations are known by their names, which begin with the project's: to set them up again changes
those that are there, and takes away those that are no longer asked for.
"""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from prefect.automations import (
    AutomationCore,
    CallWebhook,
    ChangeFlowRunState,
    EventTrigger,
    Posture,
    ResourceSpecification,
    SendNotification,
)
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound

from mae.errors import MaestroError
from mae.params.orchestration import Event, NotifyParams
from pipelines.flows.states import STATES
from pipelines.outcome import Outcome

RUNS = ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"})
TITLE = "{{ flow.name }}/{{ deployment.name }}: {{ flow_run.state.name }}"
TEXT = "Run '{{ flow_run.name }}' ended as {{ flow_run.state.name }}: {{ flow_run.state.message }}"
PAYLOAD = (
    '{"event": "EVENT", "title": {{ (flow.name ~ "/" ~ deployment.name ~ ": " ~ '
    'flow_run.state.name) | tojson }}, "text": {{ flow_run.state.message | string | tojson }}, '
    '"flow_run": "{{ flow_run.id }}"}'
)
TELLS_ITSELF = "retrain"  # the flow that does, of all but its own end
STATES_OF: dict[Event, set[str]] = {
    "diverged": {STATES[Outcome.DIVERGED][1]},
    "invalid_data": {STATES[Outcome.BAD_DATA][1]},
    "failed": {
        name
        for outcome, (kind, name) in STATES.items()
        if kind in (StateType.FAILED, StateType.CRASHED)
        and outcome not in (Outcome.DIVERGED, Outcome.BAD_DATA, Outcome.INTERRUPTED)
    },
}


def set_up_automations(
    name: str, flows: Sequence[str], channels: Sequence[NotifyParams], lost_after: int
) -> list[str]:
    """Have the deployments `<flow>/<name>` watched; return the names of the automations.

    lost_after: seconds without a sign of life after which a run is crashed. channels: they are
    told of crashes, which leave no flow to say so, and of how flows fail that tell nobody; not by
    e-mail, which Prefect's server does not send. Raises MaestroError when a block does not exist.
    """
    with get_client(sync_client=True) as client:
        every = _related(client, [f"{flow}/{name}" for flow in flows])
        silent = [f"{flow}/{name}" for flow in flows if flow != TELLS_ITSELF]
        wanted = [_of_lost_runs(name, every, lost_after)]
        for channel in channels:
            block = _block(client, channel)
            if block is None:
                continue
            telling = f"{name}: tell {channel.block} of"
            if "failed" in channel.events:
                action = _tell(channel, block, "failed")
                wanted.append(_of_ends(f"{telling} crashes", every, {"Crashed"}, action))
            for event in STATES_OF.keys() & set(channel.events) if silent else ():
                ends, action = STATES_OF[event], _tell(channel, block, event)
                wanted.append(
                    _of_ends(f"{telling} {event}", _related(client, silent), ends, action)
                )
        _replace(client, f"{name}: ", wanted)
    return [each.name for each in wanted]


def _related(client: SyncPrefectClient, deployments: Sequence[str]) -> ResourceSpecification:
    identities = [client.read_deployment_by_name(each).id for each in deployments]
    return ResourceSpecification(
        {
            "prefect.resource.role": "deployment",
            "prefect.resource.id": [f"prefect.deployment.{each}" for each in identities],
        }
    )


def _of_lost_runs(name: str, ours: ResourceSpecification, seconds: int) -> AutomationCore:
    return AutomationCore(
        name=f"{name}: lost runs",
        description="Marks runs as crashed that give no sign of life.",
        trigger=EventTrigger(
            match=RUNS,
            match_related=ours,
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.*"},  # the next one, or any state that it came to
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=seconds),
        ),
        actions=[
            ChangeFlowRunState(
                name=None,
                state=StateType.CRASHED,
                force=False,
                message=f"no sign of life for {seconds} s: its process or machine is gone",
            )
        ],
    )


def _of_ends(
    name: str,
    deployments: ResourceSpecification,
    states: set[str],
    action: CallWebhook | SendNotification,
) -> AutomationCore:
    return AutomationCore(
        name=name,
        trigger=EventTrigger(
            match=RUNS,
            match_related=deployments,
            expect={f"prefect.flow-run.{state}" for state in states},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[action],
    )


def _block(client: SyncPrefectClient, channel: NotifyParams) -> UUID | None:
    kind, _, name = channel.block.partition("/")
    if kind == "email-server-credentials":
        return None
    try:
        return client.read_block_document_by_name(name, kind).id
    except ObjectNotFound:
        raise MaestroError(
            f"the server holds no block '{channel.block}', which retrain.notify names: make it "
            "first (docs/operations.md, Notifications)"
        ) from None


def _tell(channel: NotifyParams, block: UUID, event: Event) -> CallWebhook | SendNotification:
    if channel.block.startswith("webhook/"):
        return CallWebhook(block_document_id=block, payload=PAYLOAD.replace("EVENT", event))
    return SendNotification(block_document_id=block, subject=TITLE, body=TEXT)


def _replace(client: SyncPrefectClient, prefix: str, wanted: Sequence[AutomationCore]) -> None:
    present: dict[str, UUID] = {
        each.name: each.id
        for each in client.read_automations()
        if each.id and each.name.startswith(prefix)
    }
    for one in wanted:
        if identity := present.pop(one.name, None):
            client.update_automation(identity, one)
        else:
            client.create_automation(one)
    for old in present.values():
        client.delete_automation(old)
