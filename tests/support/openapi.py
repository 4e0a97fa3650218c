"""The OpenAPI document of the application as it is now, and its snapshot.

`python -m tests.support.openapi` writes the snapshot again after a wanted change.
"""

from __future__ import annotations

import json
from typing import Any

from service.api.app import create_app
from service.config import Settings
from tests.support.paths import ASSETS

SNAPSHOT = ASSETS / "openapi.json"


def document() -> dict[str, Any]:
    """The document of the application as it is now."""
    return create_app(Settings(model="tiny")).openapi()


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(document(), indent=1, ensure_ascii=False) + "\n")
