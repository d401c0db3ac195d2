"""What an operator asks a service: is it alive, what does it serve, how does it do."""

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse

from mae.export.serving.answers import Health, IndexState, ModelState, Readiness
from mae.export.serving.deployed import CLASSIFIER, ENCODER, Deployed
from mae.export.serving.measures import CONTENT_TYPE
from mae.export.serving.pages import welcome
from mae.export.serving.service import Service


def add_operations(app: FastAPI, service: Service) -> None:
    @app.get("/health", tags=["operation"], summary="Is the process alive?")
    async def health() -> Health:
        return Health()

    @app.get(
        "/ready",
        tags=["operation"],
        summary="Which models answer, and since when?",
        responses={503: {"model": Readiness, "description": "The service is stopping."}},
    )
    async def ready(response: Response) -> Readiness:
        if service.closing:
            response.status_code = 503
        return readiness(service)

    @app.get(
        "/metrics",
        tags=["operation"],
        summary="Counts and times, for Prometheus",
        response_class=Response,
        responses={200: {"content": {CONTENT_TYPE: {"schema": {"type": "string"}}}}},
    )
    async def metrics() -> Response:
        return Response(service.measures.text(), media_type=CONTENT_TYPE)

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> HTMLResponse:
        here = str(request.base_url).rstrip("/")
        return HTMLResponse(welcome(readiness(service), service.settings.limits, here))


def readiness(service: Service) -> Readiness:
    served = service.deployment.served
    asked_for = {ENCODER: service.settings.model, CLASSIFIER: service.settings.classifier}
    models = {
        model.role: _state(model, str(asked_for[model.role]))
        for model in (served.encoder, served.classifier)
        if model is not None
    }
    index = None
    if service.settings.index is not None:
        index = IndexState(
            usable=served.index is not None,
            images=None if served.index is None else served.index.count,
            feature=None if served.index is None else served.index.feature,
        )
    return Readiness(
        status="stopping" if service.closing else "ready",
        models=models,
        index=index,
        problems=service.deployment.problems,
    )


def _state(model: Deployed, asked_for: str) -> ModelState:
    return ModelState(
        asked_for=asked_for,
        version=model.version,
        sha256=model.session.sha256,
        since=model.since,
        provider=model.session.provider,
        made_by=model.session.about.version,
    )
