"""Tests of a service that stops and restarts: the page says so, waits and loses nothing."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

from service.embedding.encoder import Encoder
from service.media import Decoder
from tests.support.library import settings_for
from tests.support.page import Visit
from tests.support.server import serving_here


def test_a_service_that_starts_again_loses_nothing(
    few: Path, tiny: Encoder, decoder: Decoder, visit: Visit, clips: list[Path]
) -> None:
    settings = settings_for(few)
    with ExitStack() as running:
        service = running.enter_context(serving_here(settings, tiny, decoder))
        port = urlsplit(service.url).port
        assert port
        page = visit(service, "/explore?view=clips", expected=r"Failed to load resource: net::|ERR_")
        page.locator("#grid .card").nth(2).wait_for()
        running.close()
        page.get_by_role("searchbox").fill("a star")
        page.keyboard.press("Enter")
        page.get_by_role("alert").get_by_text("does not respond").wait_for()
        page.set_input_files("#files", clips[3])
        page.get_by_text("sent again when it does").wait_for()
        with serving_here(settings, tiny, decoder, port=port):
            page.get_by_role("heading", name="a star").wait_for()
            page.locator("#grid .card .score").nth(2).wait_for()
            assert page.locator("#gone").is_hidden()
            page.locator(".upload[data-stage=ready]").wait_for()
            page.context.close()
