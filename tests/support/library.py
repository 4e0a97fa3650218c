"""Settings and runtimes of test libraries, and one library of drawn clips that is embedded once and copied."""

from __future__ import annotations

import shutil
from pathlib import Path

from filelock import FileLock

from service.bootstrap import Runtime
from service.config import Settings
from service.embedding.encoder import Encoder
from service.media import Decoder
from service.models import Sampling
from service.operations.folder_import import FolderImport
from service.operations.folder_scan import scan
from tests.support import services


def settings_for(folder: Path, **changes: object) -> Settings:
    """Return the settings of a test library in `folder`, with the given fields changed."""
    servers = {name.removeprefix("REELSRS_").lower(): value for name, value in services.environment(folder).items()}
    return Settings(**{"data_dir": folder, "model": "tiny", "device": "cpu", **servers, **changes})  # type: ignore[arg-type]


def embed_folder(clips: Path, data: Path, model: Encoder, decoder: Decoder) -> None:
    """Embed all `<category>/<clip>` files below `clips` into an empty data folder, as `reelsrs embed` does."""
    runtime = Runtime(settings_for(data), model=model, decoder=decoder)
    runtime.initialise()
    summary = FolderImport(runtime, Sampling(10)).run(scan(clips))
    if summary.failures:
        raise RuntimeError(f"not embedded: {summary.failures}")
    runtime.serving.warm()
    runtime.close()


class PreparedLibrary:
    """The embedded library of the drawn clips, made once on first use (under xdist, once for all processes)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def made(self, clips: Path, model: Encoder, decoder: Decoder) -> Path:
        """Return the shared data folder; embed the clips first if needed. Callers must not change the folder."""
        data = self._folder / "data"
        with FileLock(self._folder / "lock"):
            if not (self._folder / "done").exists():
                embed_folder(clips, data, model, decoder)
                (self._folder / "done").touch()
        return data

    def copied(self, to: Path, clips: Path, model: Encoder, decoder: Decoder) -> Path:
        """Copy the library to the folder `to` and return that folder. The caller may change the copy."""
        shutil.copytree(self.made(clips, model, decoder), to, ignore=shutil.ignore_patterns("*.lock"))
        return to
