"""The explorer page and the API documentation page, served from installed packages."""

from __future__ import annotations

import base64
import gzip
import hashlib
from functools import cache
from importlib.resources import files as package_files
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import FastAPI, Header, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse, Response
from fastapi.staticfiles import StaticFiles

from service.api.routes.blobs import gzip_response

_PAGE = Path(__file__).parents[1] / "explore"


def add_pages(app: FastAPI) -> None:
    """Add the explorer page, the Swagger UI page and their static files to the application."""
    # Swagger UI comes from an installed package, so that the docs page loads nothing from another host.
    assets = Path(str(package_files("fastapi_offline"))) / "static"
    app.mount("/docs/assets", StaticFiles(directory=assets), name="docs-assets")
    app.mount("/explore/assets", StaticFiles(directory=_PAGE), name="explore-assets")

    @app.get("/explore/plotly.js", include_in_schema=False)
    def plotly(
        accept_encoding: Annotated[str, Header()] = "", if_none_match: Annotated[str, Header()] = ""
    ) -> Response:
        """Return plotly.js from the installed package, compressed once with gzip: 4.8 MB become 1.4 MB."""
        tag, body = _plotly()
        return gzip_response(
            tag,
            body,
            "text/javascript",
            vary="Accept-Encoding",
            accept_encoding=accept_encoding,
            if_none_match=if_none_match,
        )

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        page = get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="ReelsRS API",
            swagger_js_url="/docs/assets/swagger-ui-bundle.js",
            swagger_css_url="/docs/assets/swagger-ui.css",
            swagger_favicon_url="/docs/assets/favicon.png",
        )
        # Allow the only inline script by its hash, computed here because a release of FastAPI may change the script.
        script = bytes(page.body).split(b"<script>")[1].split(b"</script>")[0]
        digest = base64.b64encode(hashlib.sha256(script).digest()).decode()
        page.headers["Content-Security-Policy"] = (
            f"default-src 'self'; script-src 'self' 'sha256-{digest}'; style-src 'self' 'unsafe-inline'; "
            "img-src 'self' data:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
        )
        return page

    @app.get("/explore", include_in_schema=False)
    def explore(request: Request) -> Response:
        # The rest of the policy is in a meta element of the page. Browsers obey this directive in a header only.
        headers = {"Content-Security-Policy": "frame-ancestors 'none'"}
        link = request.app.state.runtime.files.signed_url("0" * 64)
        if link is None:
            return FileResponse(_PAGE / "index.html", media_type="text/html", headers=headers)
        # Clips are served by the object store, so the policy of the page must allow its origin.
        scheme, host, *_ = urlsplit(link)
        page = (_PAGE / "index.html").read_text().replace("media-src 'self'", f"media-src 'self' {scheme}://{host}")
        return HTMLResponse(page, headers=headers)


@cache
def _plotly() -> tuple[str, bytes]:
    """Return the SHA-256 of plotly.js and its bytes compressed with gzip."""
    script = (Path(str(package_files("plotly"))) / "package_data" / "plotly.min.js").read_bytes()
    return hashlib.sha256(script).hexdigest(), gzip.compress(script, mtime=0)
