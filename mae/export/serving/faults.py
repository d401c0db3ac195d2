"""Why a request was refused: a status, a code and a sentence, in one JSON form for all."""

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, Field

from mae.data import reasons
from mae.data.reasons import ImageFault

RETRY_SECONDS = 1

# Codes beyond those of mae.data.reasons, which say what is wrong with an image.
BUSY = "busy"
CUT = "cut"  # the client went away; nobody reads the answer
INTERNAL = "internal"
INVALID_PARAMETER = "invalid_parameter"
MALFORMED = "malformed"
METHOD_NOT_ALLOWED = "method_not_allowed"
NO_INDEX = "no_index"
NOT_FINITE = "not_finite"
NOT_FOUND = "not_found"
TIMEOUT = "timeout"
TOO_MANY_IMAGES = "too_many_images"
WRONG_TYPE = "wrong_type"


class Problem(BaseModel):
    """Why there is no answer."""

    error: str = Field(description="A code for programs.", examples=["not_an_image"])
    detail: str = Field(
        description="A sentence for people.", examples=["no known image format begins so"]
    )


class Refusal(Exception):
    """A request that is not answered, and why."""

    def __init__(self, status: int, error: str, detail: str) -> None:
        super().__init__(status, error, detail)
        self.status = status
        self.problem = Problem(error=error, detail=detail)

    @property
    def headers(self) -> dict[str, str]:
        if self.status == 503:
            return {"Retry-After": str(RETRY_SECONDS)}
        return {"Connection": "close"} if self.status == 408 else {}


def busy(what: str) -> Refusal:
    return Refusal(503, BUSY, f"{what}: try again in a moment")


def not_an_answer(fault: ImageFault, name: str | None) -> Refusal:
    """Return the refusal of the image `name` of a request, or of its only one."""
    status = 413 if fault.reason == reasons.TOO_LARGE else 422
    return Refusal(
        status, fault.reason, fault.detail if name is None else f"{name}: {fault.detail}"
    )


_MEANINGS = {
    400: "The body is not the multipart form that its type announces, or holds no file.",
    404: "There is nothing of that name.",
    405: "Another method is wanted.",
    408: "The request did not arrive in time.",
    413: "More bytes, pixels or images than the service takes.",
    415: "The body is of a type that is no image.",
    422: "Not an image that can be used, or a parameter out of its range.",
    500: "A fault of the service.",
    503: "Too busy just now, or not ready.",
}


def documented(statuses: Iterable[int]) -> dict[int | str, dict[str, Any]]:
    """Return the entries of an OpenAPI document for refusals with these statuses."""
    entries: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        entries[status] = {"model": Problem, "description": _MEANINGS[status]}
        if status == 503:
            entries[status]["headers"] = {
                "Retry-After": {
                    "description": "Seconds to wait before another try.",
                    "schema": {"type": "integer", "minimum": 0},
                }
            }
    return entries
