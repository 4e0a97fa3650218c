"""The application's current OpenAPI document and its snapshot.

`python -m tests.support.openapi` rewrites the snapshot after an intended change.
"""

from __future__ import annotations

import json
from typing import Any

from service.api.app import create_app
from service.config import Settings
from tests.support.paths import ASSETS

SNAPSHOT = ASSETS / "openapi.json"


def document() -> dict[str, Any]:
    """Return the application's current OpenAPI document."""
    return create_app(Settings(model="tiny")).openapi()


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(document(), indent=1, ensure_ascii=False) + "\n")
