"""A browser, monitored pages, and libraries of drawn clips that are embedded and projected once.

A test fails if its page writes to the browser's console, if a script fails, or if the page requests another host.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from filelock import FileLock

from service.bootstrap import Runtime
from service.config import Settings
from service.database.projection_rows import Embedding
from service.embedding.encoder import Encoder
from service.media import Decoder
from service.projections.reduction import Method
from tests.support import services
from tests.support.clips import draw_captioned
from tests.support.library import embed_folder, settings_for
from tests.support.page import WIDE, Visit
from tests.support.server import Service, serving_here

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

FLAGS = (
    "--no-sandbox",
    # Graphics in software: WebGL draws the maps. Pages are painted without WebGL, which is then faster.
    *("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-gpu-rasterization"),
    # No background activity.
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic"),
    *("--no-first-run", "--disable-dev-shm-usage", "--disable-crash-reporter"),
)


# --- the browser


@dataclass(frozen=True)
class StartedBrowser:
    """Chromium, and the event loop of its Playwright driver."""

    browser: Browser
    loop: asyncio.AbstractEventLoop

    @contextmanager
    def used(self) -> Iterator[Browser]:
        """Yield the browser for use in this thread.

        The driver needs its own loop marked as the thread's running loop. Outside this block the mark is removed,
        because other tests of this thread could not run a loop.
        """
        asyncio._set_running_loop(self.loop)  # noqa: SLF001
        try:
            yield self.browser
        finally:
            asyncio._set_running_loop(None)  # noqa: SLF001


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartedBrowser]:
    """Start headless Chromium once. All files that Chromium writes are in the temporary folder."""
    program = shutil.which("chromium")
    if program is None:
        services.missing("there is no chromium on the path")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        services.missing("playwright is not installed")
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(home))  # The driver creates the profile and stores downloads there.
        playwright = sync_playwright().start()
    try:
        browser = playwright.chromium.launch(
            executable_path=program,
            args=FLAGS,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("XDG_")},
                "HOME": str(home),
                "TMPDIR": str(home),
            },
        )
        started = StartedBrowser(browser, asyncio.get_running_loop())
    except BaseException:
        playwright.stop()
        raise
    asyncio._set_running_loop(None)  # noqa: SLF001
    yield started
    with started.used():
        browser.close()
        playwright.stop()


class Watched:
    """Pages in new browser profiles, and the errors that occurred on them."""

    def __init__(self, browser: Browser) -> None:
        self.wrong: list[str] = []
        self._browser = browser
        self._contexts: list[BrowserContext] = []

    def visit(
        self, service: Service, address: str = "/explore", *, expected: str = "", store: str = "", **of: Any
    ) -> Page:
        """Open a page in a new browser profile.

        Args:
            service: The service that serves the page.
            address: Path and query of the page.
            expected: Pattern of console messages that the test provokes; browsers report every error response.
            store: Another host that the page may request.
            of: Options of the browser context. With `clock`, a test can advance the page's timers.

        Returns:
            The opened page.
        """
        clock = of.pop("clock", False)
        context = self._browser.new_context(**{"viewport": WIDE, **of})
        self._contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)  # Graphics in software, on a machine with other load.
        if clock:
            page.clock.install()
        self._watch(page, {urlsplit(service.url).netloc, store}, expected)
        page.goto(service.url + address)
        return page

    def close(self) -> None:
        """Close the pages. Must happen before the service stops."""
        while self._contexts:
            self._contexts.pop().close()

    def _watch(self, page: Page, hosts: set[str], expected: str) -> None:
        def said(kind: str, text: str) -> None:
            if kind != "debug" and not (expected and re.search(expected, text)):
                self.wrong.append(f"{kind}: {text}")

        def asked(url: str) -> None:
            if urlsplit(url).scheme not in ("blob", "data", "file") and urlsplit(url).netloc not in hosts:
                self.wrong.append(f"asked another host: {url}")

        page.on("console", lambda message: said(message.type, message.text))
        page.on("pageerror", lambda error: self.wrong.append(f"error: {error.stack or error}"))
        page.on("request", lambda request: asked(request.url))


@pytest.fixture
def visit(chromium: StartedBrowser) -> Iterator[Visit]:
    """Yield `Watched.visit`, for example `visit(service, "/explore?q=star")`; fail if a page had errors."""
    with chromium.used() as browser:
        watched = Watched(browser)
        try:
            yield watched.visit
        finally:
            watched.close()
        assert watched.wrong == []


# --- libraries

Copied = Callable[[Path], Path]


def _once(path: Path, make: Callable[[Path], object]) -> Path:
    """Return `path`, written by `make`. Under xdist the first process writes, while the others wait."""
    with FileLock(f"{path}.lock"):
        if not path.exists():
            aside = path.with_name(f"{path.name}.part")
            make(aside)
            aside.rename(path)
    return path


@pytest.fixture(scope="session")
def clips(shared_folder: Path) -> list[Path]:
    """Draw twelve clips of six seconds with captions, in six categories; the first three differ in category."""
    made = _once(shared_folder / "browser-clips", lambda to: draw_captioned(to, 12, seed=5, seconds=6))
    return sorted(made.rglob("*.mp4"), key=lambda clip: clip.name)


def _copied(to: Path, once: Path, make: Callable[[Path], object]) -> Path:
    """Copy a library that is made once to the folder `to`; make it again if the library is kept on servers."""
    if services.environment(to):
        make(to)
    else:
        shutil.copytree(_once(once, make), to, ignore=shutil.ignore_patterns("*.lock"))
    return to


@pytest.fixture(scope="session")
def embedded(shared_folder: Path, clips: list[Path], tiny: Encoder, decoder: Decoder) -> Copied:
    """Return a function `embedded(to)` that creates a data folder with the twelve clips."""

    def make(data: Path) -> None:
        embed_folder(clips[0].parents[1], data, tiny, decoder)

    return lambda to: _copied(to, shared_folder / "browser-embedded", make)


@pytest.fixture(scope="session")
def library(
    tmp_path_factory: pytest.TempPathFactory, embedded: Copied, tiny: Encoder, decoder: Decoder
) -> Iterator[Service]:
    """Serve the twelve clips, for tests that do not change them and show no map."""
    data = embedded(tmp_path_factory.mktemp("library") / "data")
    with serving_here(settings_for(data), tiny, decoder) as running:
        yield running


@pytest.fixture(scope="session")
def mapped(
    tmp_path_factory: pytest.TempPathFactory, shared_folder: Path, embedded: Copied, tiny: Encoder, decoder: Decoder
) -> Iterator[Service]:
    """Serve the twelve clips with every projection that tests show.

    UMAP is compiled when a process first uses UMAP, which takes far longer than the fit. All projections are therefore
    fitted once, in one process, and never in a child of a worker.
    """

    def make(data: Path) -> None:
        embedded(data)
        _lay_out(settings_for(data), tiny, decoder, _MAPS)

    data = _copied(tmp_path_factory.mktemp("mapped") / "data", shared_folder / "browser-mapped", make)
    with serving_here(settings_for(data), tiny, decoder) as running:
        yield running


_MAPS: tuple[tuple[Embedding, Method, int], ...] = (
    *(("aggregated", "umap", 2), ("aggregated", "umap", 3), ("frame", "umap", 2)),
    *(("frame", "pca", 2), ("frame", "pca", 3)),
)


def _lay_out(
    settings: Settings, model: Encoder, decoder: Decoder, wanted: Iterable[tuple[Embedding, Method, int]]
) -> None:
    runtime = Runtime(settings, model=model, decoder=decoder)
    runtime.initialise()
    for embedding, method, dimensions in wanted:
        runtime.projections.fit_and_wait(runtime.projections.spec(embedding, method, dimensions))
    runtime.close()


@pytest.fixture
def few(tmp_path: Path, shared_folder: Path, clips: list[Path], tiny: Encoder, decoder: Decoder) -> Path:
    """Return the data folder of a library with the first three clips and their PCA projection. A test may change it."""

    def make(data: Path) -> None:
        chosen = data.with_name(f"{data.name}.clips")
        for clip in clips[:3]:
            (chosen / clip.parent.name).mkdir(parents=True, exist_ok=True)
            for file in (clip, clip.with_suffix(".txt")):
                shutil.copy(file, chosen / clip.parent.name)
        embed_folder(chosen, data, tiny, decoder)
        _lay_out(settings_for(data), tiny, decoder, [("aggregated", "pca", 2)])

    return _copied(tmp_path / "data", shared_folder / "browser-few", make)


@pytest.fixture
def own_library(few: Path, tiny: Encoder, decoder: Decoder) -> Iterator[Service]:
    """Serve three clips that a test may change. Request before `visit`, so that the service outlives its pages."""
    with serving_here(settings_for(few), tiny, decoder) as running:
        yield running
