"""Tests of the wheel, installed outside the checkout: it has all files that it needs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.paths import ROOT
from tests.support.processes import CHILD_ENVIRONMENT


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the project's wheel, to put first on the path.

    Its dependencies come from this environment.
    """
    folder = tmp_path_factory.mktemp("wheel")
    # The build backend runs directly, because not every environment has pip.
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True)
    with zipfile.ZipFile(next(folder.glob("reelsrs-*.whl"))) as wheel:
        assert not [name for name in wheel.namelist() if name.startswith(("tests/", "migrations/"))]
        wheel.extractall(folder / "site")
    return folder / "site"


def test_an_installed_wheel_embeds_and_answers(installed: Path, drawn: Path, tmp_path: Path) -> None:
    environment = {**CHILD_ENVIRONMENT, "PYTHONPATH": str(installed), "REELSRS_MODEL": "tiny"}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("-c", "import service; print(service.__file__)").startswith(str(installed))
    assert run("-m", "service", "embed", "--data-folder", str(drawn)).startswith("12 embedded")
    clip = sorted(drawn.rglob("*.mp4"))[0]
    assert len(run("-m", "service", "similar", str(clip), "--k", "3").splitlines()) == 4
    carried = ("calibration/39.jpg", "tiny/open_clip_model.safetensors")
    for part in ("migrations/versions", "explore/index.html", *(f"embedding/{one}" for one in carried)):
        assert (installed / "service" / part).exists(), part


def test_help_needs_nothing_heavy_and_a_server_no_maps(tmp_path: Path) -> None:
    """The imported modules determine the startup time of a command; they do not depend on the machine."""

    def loaded(script: str) -> set[str]:
        done = subprocess.run(
            [sys.executable, "-c", f"{script}\nimport sys; print(*sys.modules)"],
            env=CHILD_ENVIRONMENT,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        return {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}

    telling = "from typer.testing import CliRunner; from service import cli; CliRunner().invoke(cli.app, ['--help'])"
    heavy = {"torch", "numpy", "sqlalchemy", "fastapi", "faiss", "av", "pydantic", "umap", "plotly"}
    assert not loaded(telling) & heavy
    serving = (
        "from service import config; from service.api import app; settings = config.load(model='tiny');"
        "runtime = app.start_runtime(settings);"
        "app.create_app(settings); runtime.close()"
    )
    found = loaded(serving)
    assert found >= {"torch", "faiss", "fastapi"}
    unwanted = {"umap", "plotly", "pymilvus", "openTSNE", "sklearn", "matplotlib", "openvino", "nncf", "av"}
    assert not (found & unwanted) - loaded("import torchvision"), "torchvision's older releases import PyAV themselves"


def test_the_checkpoint_is_small() -> None:
    folder = ROOT / "service" / "embedding" / "tiny"
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert size <= 10_000_000
    assert os.access(folder / "open_clip_config.json", os.R_OK)


def test_the_image_is_locked_to_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked: dict[str, list[Requirement]] = {}
    for entry in (ROOT / ".ci" / "requirements.lock").read_text().replace("\\\n", " ").splitlines():
        requirement, *hashes = entry.split("--hash=sha256:")
        assert hashes, f"{entry} has no hash"
        one = Requirement(requirement)
        locked.setdefault(canonicalize_name(one.name), []).append(one)
    assert not [name for name in locked if name.startswith(("torch", "nvidia-", "triton", "cuda-"))]
    dockerfile = (ROOT / "Dockerfile").read_text()
    versions = dict(re.findall(r"^ARG (TORCH\w*)_VERSION=(\S+)$", dockerfile, re.MULTILINE))
    image = {"python_version": "3.11", "python_full_version": "3.11.9", "sys_platform": "linux"}
    for asked in map(Requirement, project["dependencies"]):
        if asked.name == "torch":
            assert asked.specifier.contains(versions["TORCH"])
            continue
        mine = [
            one for one in locked[canonicalize_name(asked.name)] if one.marker is None or one.marker.evaluate(image)
        ]
        assert len(mine) == 1, asked
        (pin,) = mine[0].specifier
        assert pin.operator == "=="
        assert asked.specifier.contains(pin.version), f"{asked}, but {pin}: run .ci/lock"
