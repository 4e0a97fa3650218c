"""Change the model's behaviour in the service's processes, by a `sitecustomize` module on their path."""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.paths import ROOT

_INSTALLER = """

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name != "service.embedding.encoder":
            return None
        sys.meta_path.remove(self)
        import importlib.util
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            install(module)
        spec.loader.exec_module = exec_module
        return spec

import sys
from tests.support.paths import ROOT
sys.meta_path.insert(0, Finder())
"""


def stand_in(folder: Path, code: str) -> dict[str, str]:
    """Return the environment of a process in which `code` changes the model.

    `code` must define `install(module)`. That function is called with `service.embedding.encoder` as soon as the module
    is loaded. The code is written into `folder`.
    """
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(code + _INSTALLER)
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
