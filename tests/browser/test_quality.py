"""Tests of the dialog that shows how good search is on the library."""

from __future__ import annotations

import re

from tests.support.page import Visit
from tests.support.server import Service


def test_the_quality_of_the_active_model_is_shown(visit: Visit, library: Service) -> None:
    page = visit(library, "/explore?view=clips")
    page.get_by_role("button", name="Quality").click()
    dialog = page.locator("#quality")
    dialog.locator("table").wait_for()
    with library.client() as client:
        active = client.get("/v1/info").json()["generation"]
        found = client.get(f"/v1/generations/{active}/evaluation").json()
    assert dialog.locator("thead th").all_inner_texts() == ["Figure", "tiny active"]
    figures = {(one["measure"], one["ranking"], one["name"]): one for one in found["generations"][0]["figures"]}
    shown = dialog.locator("tbody td").all_inner_texts()
    keys = [("captions", "visual", "recall@5"), ("captions", "visual", "mrr"), ("categories", "fused", "precision@5")]
    assert [text.split(" ")[0] for text in shown] == [f"{figures[key]['value']:.2f}" for key in keys]
    assert all(re.fullmatch(r"\d\.\d\d \[\d\.\d\d, \d\.\d\d\]", text) for text in shown)
    assert dialog.locator("#quality-said").inner_text() == f"{found['videos']} clips of {found['videos']} compared."
    dialog.get_by_role("button", name="Close").click()
    dialog.wait_for(state="hidden")
