"""The OpenAPI document in version 3.0: the packaged Swagger UI reads no later one."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

VERSION = "3.0.3"

_NULL = {"type": "null"}


def document(app: FastAPI) -> dict[str, Any]:
    """Return what describes the routes of `app`, made once."""
    if app.openapi_schema is None:
        described = get_openapi(
            title=app.title,
            version=app.version,
            openapi_version=VERSION,
            description=app.description,
            routes=app.routes,
        )
        app.openapi_schema = _as_3_0(described)
    return app.openapi_schema


def _as_3_0(content: Any) -> Any:
    """Say what 3.1 took from JSON Schema as 3.0 does: null, constants and examples."""
    if isinstance(content, list):
        return [_as_3_0(item) for item in content]
    if not isinstance(content, dict):
        return content
    found = {name: _as_3_0(value) for name, value in content.items()}
    if _NULL in found.get("anyOf", ()):
        one_of = [schema for schema in found.pop("anyOf") if schema != _NULL]
        # A reference is all that an object with one may hold, but within allOf.
        plain = len(one_of) == 1 and "$ref" not in one_of[0]
        found |= one_of[0] if plain else {"allOf" if len(one_of) == 1 else "anyOf": one_of}
        found["nullable"] = True
    if "const" in found:
        found["enum"] = [found.pop("const")]
    if isinstance(found.get("examples"), list):
        found["example"] = found.pop("examples")[0]
    return found
