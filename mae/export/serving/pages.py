"""The pages for people: what this service is, and its documentation to try in a browser."""

from html import escape
from pathlib import Path

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse
from starlette.exceptions import HTTPException
from swagger_ui_bundle import swagger_ui_path

from mae import __version__
from mae.export.serving.answers import Readiness
from mae.export.serving.settings import Limits

# All that the documentation loads: from here, never from another machine.
_ASSETS = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon-32x32.png": "image/png",
}


def add_docs(app: FastAPI) -> None:
    """Serve Swagger UI under /docs with files of this machine alone."""

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title="Maestro",
            swagger_js_url="docs/swagger-ui-bundle.js",
            swagger_css_url="docs/swagger-ui.css",
            swagger_favicon_url="docs/favicon-32x32.png",
        )

    @app.get("/docs/{name}", include_in_schema=False)
    async def asset(name: str) -> FileResponse:
        if name not in _ASSETS:
            raise HTTPException(404)
        return FileResponse(Path(swagger_ui_path) / name, media_type=_ASSETS[name])


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Maestro</title>
<link rel="icon" href="docs/favicon-32x32.png">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 48rem; margin: 3rem auto; padding: 0 1rem;
  color: #1b1f24; }}
table {{ border-collapse: collapse; width: 100%; margin: 1rem 0; }}
th, td {{ text-align: left; vertical-align: top; padding: .35rem .6rem;
  border-bottom: 1px solid #d8dee4; overflow-wrap: anywhere; }}
th {{ white-space: nowrap; }}
pre {{ background: #f6f8fa; padding: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }}
.problem {{ color: #9a3412; }}
</style>
</head>
<body>
<h1>Maestro</h1>
<p>An image encoder behind HTTP: send an image, get a vector. <a href="docs">Try it in the
browser</a>, or read its <a href="openapi.json">OpenAPI document</a>, its
<a href="ready">state</a> and its <a href="metrics">metrics</a>.</p>
<pre>curl -H 'Content-Type: application/octet-stream' --data-binary @image.jpg {here}/embed
curl -F file=@one.jpg -F file=@two.png {here}/embed?feature=mean</pre>
<table>{rows}</table>
{problems}
<p>A request may have {megabytes:g} MB, an image {megapixels:g} megapixels. Maestro {version}.</p>
</body>
</html>
"""


def welcome(state: Readiness, limits: Limits, here: str) -> str:
    """Return the page at /: what is served, and how to ask for it at the address `here`."""
    rows = [
        (
            role,
            f"{model.asked_for}, version {model.version}, since {model.since:%Y-%m-%d %H:%M} UTC "
            f"on {model.provider}",
        )
        for role, model in state.models.items()
    ]
    if state.index is not None:
        said = f"{state.index.images} images by {state.index.feature}"
        rows.append(("index", said if state.index.usable else "cannot be used"))
    return _PAGE.format(
        here=escape(here),
        rows="".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in rows),
        problems="".join(
            f'<p class="problem">{escape(role)}: {escape(said)}</p>'
            for role, said in state.problems.items()
        ),
        megabytes=limits.max_bytes / 1e6,
        megapixels=limits.max_pixels / 1e6,
        version=__version__,
    )
