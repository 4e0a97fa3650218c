"""Tests of the guide: it is served, and each of its commands and calls works on a real library."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from PIL import Image

from service.embedding.encoder import Encoder
from service.media import Decoder
from tests.support import services
from tests.support.cli import run
from tests.support.guide import ALL, PAGES, TEXTS, blocks, commands
from tests.support.library import settings_for
from tests.support.paths import ROOT
from tests.support.rest import upload
from tests.support.server import Service, serving_here
from tests.support.wait import until

# Commands that cannot run here: they install, run until stopped, or need servers or weights that are not here.
ELSEWHERE = re.compile(
    r"python3 -m venv|\S*pip |\S*uv pip|docker |export (AWS|REELSRS)|(\S*/)?reelsrs (demo|worker)\b|.*\breelsrs serve\b"
    r"|\S+ -m pytest|embedding-atlas |(\S*/)?just |reelsrs copy --to-database postgresql"
    r"|curl .*/v1/generations$|curl .*\"model\""
)


@dataclass(frozen=True)
class Place:
    """A folder with the files that the guide names, a service over its library, and ids for the guide's variables."""

    folder: Path
    service: Service
    ids: list[str]
    names: dict[str, str]
    typed: set[str] = field(default_factory=set)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny: Encoder, decoder: Decoder, drawn: Path) -> Iterator[Place]:
    """Yield one place for all pages. Some pages delete their example, so each page has its own."""
    folder = tmp_path_factory.mktemp("guide")
    clips = sorted(drawn.rglob("*.mp4"))
    for category, name in (("animals", "dog"), ("Category", "video"), ("travel", "beach")):
        (folder / "Data" / category).mkdir(parents=True)
        shutil.copy(clips.pop(), folder / "Data" / category / f"{name}.mp4")
    shutil.copy(clips.pop(), folder / "dog.mp4")
    shutil.copy(clips.pop(), folder / "other.mp4")
    Image.new("RGB", (64, 64), "red").save(folder / "beach.jpg")
    with serving_here(settings_for(folder / "data"), tiny, decoder) as service, service.client() as client:
        ids = [
            upload(client, clip, caption=f"clip {number}", category="animals").json()["id"]
            for number, clip in enumerate(clips)
        ]
        asked = client.post(
            "/v1/projections", json={"embedding": "aggregated", "method": "pca", "dimensions": 2}
        ).json()
        judged = {"query": "a red circle", "relevant": ids[-2:]}
        (folder / "queries.jsonl").write_text(json.dumps(judged), encoding="utf-8")
        names = {"MAP": asked["id"], "KEY": "none", "GENERATION": client.get("/v1/info").json()["generation"]}
        until(lambda: client.get(f"/v1/projections/{asked['id']}").json()["status"] == "ready", what="the map")
        yield Place(folder, service, ids, names)


TYPED = {page: [one for one in commands(text) if not ELSEWHERE.match(one)] for page, text in TEXTS.items()}


@pytest.mark.parametrize("page", [page for page, typed in TYPED.items() if typed])
def test_every_command_of_a_page_does_its_work(place: Place, page: str) -> None:
    deletes = any("-X DELETE" in command for command in TYPED[page])
    names = {**place.names, "ID": place.ids.pop(0) if deletes else place.ids[0], "OTHER": place.ids[-1]}
    for command in TYPED[page]:
        if command in place.typed and "$ID" not in command:
            continue
        place.typed.add(command)
        if re.match(r"(\w+=\S+ )*(\.venv/bin/)?reelsrs ", command):
            _type_reelsrs(place, command, names)
        else:
            assert command.startswith("curl "), f"{page}: is this run, or elsewhere? {command}"
            _type_curl(place, command, names)


def _type_reelsrs(place: Place, command: str, names: dict[str, str]) -> None:
    """Run a command in this process, with folders at the root moved into the test's folder."""
    typed = re.sub(r"(?<![\w.])/(backups|new)\b", f"{place.folder}/\\1", command.removeprefix(".venv/bin/"))
    for name, value in names.items():
        typed = typed.replace(f"${name}", value)
    words = shlex.split(typed)
    first = words.index("reelsrs")
    environment = dict(word.split("=", 1) for word in words[:first])
    (place.folder / "backups").mkdir(exist_ok=True)
    done = run(*words[first + 1 :], cwd=place.folder, **{"REELSRS_MODEL": "tiny", **environment})
    assert done.returncode == 0, (command, done.stdout, done.stderr)


def _type_curl(place: Place, command: str, names: dict[str, str]) -> None:
    if shutil.which("curl") is None:
        services.missing("there is no curl on the path")
    typed = command.replace("curl ", "curl -sS --fail-with-body ", 1)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", typed.replace("http://127.0.0.1:8000", place.service.url)],
        cwd=place.folder,
        env={"PATH": os.environ["PATH"], **names},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, (command, done.stdout, done.stderr)


def test_examples_in_python_run(place: Place) -> None:
    ran = 0
    for block in blocks(ALL, "python"):
        if "fiftyone" not in block:
            names: dict[str, object] = {}
            exec(block.replace("http://127.0.0.1:8000", place.service.url).replace("MAP", place.names["MAP"]), names)
            ran += 1
            assert names["table"].num_rows > 5  # type: ignore[attr-defined]
    assert ran


def test_the_guide_is_served_as_text_with_a_search(place: Place) -> None:
    with place.service.client() as client:
        contents = client.get("/guide")
        assert contents.status_code == 200
        assert "script" not in contents.headers["content-security-policy"]
        for page in PAGES:
            address = "/guide" if page.stem == "README" else f"/guide/{page.stem}"
            shown = client.get(address)
            assert shown.status_code == 200
            title = TEXTS[page.relative_to(ROOT).as_posix()].splitlines()[0].removeprefix("# ")
            assert f">{title}</h1>" in shown.text
            assert f'href="{address}"' in contents.text
            for link in re.findall(r'(?:href|src)="(/guide[^"#]*)', shown.text):
                assert client.get(link).status_code == 200, (address, link)
            assert ".md" not in "".join(re.findall(r'href="([^"]*)"', shown.text.split("<main")[1]))
        found = client.get("/guide", params={"q": "api keys"}).text
        assert "/guide/security#api-keys" in found
        assert "<mark>" in found
        hostile = client.get("/guide", params={"q": "<script>alert(1)</script> ("})
        assert hostile.status_code == 200
        assert "<script" not in hostile.text
        assert "0 sections" in hostile.text
        missing: httpx.Response = client.get("/guide/nothing")
        assert missing.status_code == 404
        assert missing.headers["content-type"] == "application/problem+json"
        assert client.get("/").json()["links"]["guide"] == "/guide"
