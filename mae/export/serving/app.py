"""The HTTP face of a service: its routes, what each may answer, and its OpenAPI document."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from numpy.typing import NDArray
from starlette.exceptions import HTTPException

from mae import __version__
from mae.export.search import Match, SearchIndex
from mae.export.serving.answers import (
    Class,
    Classifications,
    Classified,
    Embeddings,
    ModelInUse,
    Neighbour,
    Neighbours,
    Searched,
    Vector,
)
from mae.export.serving.deployed import Served
from mae.export.serving.faults import (
    INTERNAL,
    INVALID_PARAMETER,
    METHOD_NOT_ALLOWED,
    NO_INDEX,
    NOT_FOUND,
    Problem,
    Refusal,
    documented,
)
from mae.export.serving.openapi import document
from mae.export.serving.operations import add_operations
from mae.export.serving.pages import add_docs
from mae.export.serving.service import Service
from mae.export.serving.timing import Timed

_MOST = 1000  # classes or neighbours of an answer

_BINARY = {"type": "string", "format": "binary"}
_IMAGES: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "One image as it is, or a form with one file for each image.",
        "content": {
            "application/octet-stream": {"schema": _BINARY},
            "image/*": {"schema": _BINARY},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"file": {"type": "array", "items": _BINARY, "minItems": 1}},
                    "required": ["file"],
                }
            },
        },
    }
}
_REFUSALS = documented((400, 408, 413, 415, 422, 500, 503))


def create_app(service: Service) -> FastAPI:
    """Return the application; it starts and closes `service` with its own life."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        service.close()

    app = FastAPI(
        title="Maestro",
        version=__version__,
        description=_description(service),
        lifespan=life,
        docs_url=None,
        redoc_url=None,
    )
    add_docs(app)
    _add_refusals(app, service)
    _add_embed(app, service)
    if service.deployment.served.classifier is not None:
        _add_classify(app, service)
    if service.settings.index is not None:
        _add_search(app, service)
    add_operations(app, service)
    app.openapi = partial(document, app)  # type: ignore[method-assign]
    app.add_middleware(Timed, measures=service.measures)
    return app


def _description(service: Service) -> str:
    limits = service.settings.limits
    about = service.deployment.served.encoder.session.about
    return (
        "Images in, embeddings out. Send an image file as it is (JPEG, PNG, WebP, TIFF, BMP, GIF, "
        "...): the service turns it upright, resizes and crops it as the model was trained to see "
        "it. "
        f"A request may have {limits.max_bytes / 1e6:g} MB, an image {limits.max_pixels / 1e6:g} "
        f"megapixels. The encoder sees {about.architecture.channels} channels of "
        f"{about.statistics.bit_depth} bits."
    )


def _add_embed(app: FastAPI, service: Service) -> None:
    @app.post(
        "/embed",
        tags=["images"],
        responses=_REFUSALS,
        openapi_extra=_IMAGES,
        summary="Turn images into vectors",
    )
    async def embed(
        request: Request,
        feature: Annotated[
            Literal["cls", "mean"],
            Query(description="The class token, or the mean of the patch tokens."),
        ] = "cls",
    ) -> Embeddings:
        async with service.images_of(request) as uploads:
            model = service.deployment.served.encoder
            answers = await service.run(model, uploads)
            vectors = [
                Vector(name=upload.name, embedding=answer[feature].tolist())
                for upload, answer in zip(uploads, answers, strict=True)
            ]
            dim = len(vectors[0].embedding)
            return Embeddings(model=ModelInUse.of(model), feature=feature, dim=dim, images=vectors)


def _add_classify(app: FastAPI, service: Service) -> None:
    @app.post(
        "/classify",
        tags=["images"],
        responses=_REFUSALS,
        openapi_extra=_IMAGES,
        summary="Name the likeliest classes of images",
    )
    async def classify(
        request: Request,
        top: Annotated[
            int, Query(ge=1, le=_MOST, description="Classes told, at most all there are.")
        ] = 5,
    ) -> Classifications:
        async with service.images_of(request) as uploads:
            model = service.deployment.served.classifier
            assert model is not None  # a route that is there only with a classifier
            answers = await service.run(model, uploads)
            labels = model.session.about.classes
            images = []
            for upload, answer in zip(uploads, answers, strict=True):
                probabilities = answer["probabilities"]
                best = (-probabilities).argsort(kind="stable")[:top]
                classes = [
                    Class(label=labels[at], probability=float(probabilities[at])) for at in best
                ]
                images.append(Classified(name=upload.name, classes=classes))
            return Classifications(model=ModelInUse.of(model), images=images)


def _add_search(app: FastAPI, service: Service) -> None:
    @app.post(
        "/search",
        tags=["images"],
        responses=_REFUSALS,
        openapi_extra=_IMAGES,
        summary="Find the most similar images of the index",
    )
    async def search(
        request: Request,
        k: Annotated[
            int, Query(ge=1, le=_MOST, description="Neighbours told, at most all there are.")
        ] = 10,
    ) -> Searched:
        _index_of(service.deployment.served)
        async with service.images_of(request) as uploads:
            served = service.deployment.served
            index = _index_of(served)
            answers = await service.run(served.encoder, uploads)
            found = await service.in_thread(
                _neighbours, index, [answer[index.feature] for answer in answers], k
            )
            images = [
                Neighbours(
                    name=upload.name,
                    matches=[Neighbour(key=m.key, similarity=m.similarity) for m in matches],
                )
                for upload, matches in zip(uploads, found, strict=True)
            ]
            return Searched(model=ModelInUse.of(served.encoder), images=images)


def _index_of(served: Served) -> SearchIndex:
    if served.index is None:
        raise Refusal(503, NO_INDEX, f"no search for now: {served.index_problem}")
    return served.index


def _neighbours(index: SearchIndex, vectors: list[NDArray], k: int) -> list[list[Match]]:
    return index.query(np.stack(vectors), k)


# --- Refusals ---------------------------------------------------------------------------------

_ABSENT = {"/classify": "--classifier", "/search": "--index"}


def _add_refusals(app: FastAPI, service: Service) -> None:
    def refused(refusal: Refusal) -> JSONResponse:
        service.measures.rejected.labels(refusal.problem.error).inc()
        return JSONResponse(refusal.problem.model_dump(), refusal.status, refusal.headers)

    @app.exception_handler(Refusal)
    async def on_refusal(_: Request, error: Refusal) -> JSONResponse:
        return refused(error)

    @app.exception_handler(RequestValidationError)
    async def on_parameter(_: Request, error: RequestValidationError) -> JSONResponse:
        said = "; ".join(f"{fault['loc'][-1]}: {fault['msg']}" for fault in error.errors())
        return refused(Refusal(422, INVALID_PARAMETER, said))

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> JSONResponse:
        code, detail = NOT_FOUND, f"there is no {request.url.path[:200]}: see /docs"
        if error.status_code == 405:
            code, detail = METHOD_NOT_ALLOWED, f"{request.url.path[:200]} takes another method"
        elif (option := _ABSENT.get(request.url.path)) is not None:
            detail = f"this service was started without {option}"
        answer = refused(Refusal(error.status_code, code, detail))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Exception)
    async def on_fault(_: Request, error: Exception) -> JSONResponse:
        # Starlette raises it again, so that the server's log has the trace.
        detail = "a fault of the service; its log tells more"
        service.measures.rejected.labels(INTERNAL).inc()
        return JSONResponse(Problem(error=INTERNAL, detail=detail).model_dump(), 500)
