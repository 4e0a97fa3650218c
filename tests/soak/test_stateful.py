"""Run sequences of requests over the whole OpenAPI document, each request built from earlier responses.

schemathesis finds in the document which response has what another operation needs. It then runs sequences: upload a
clip, edit it, request recommendations, delete the clip, request again. No request may break the service, and every
response must match the document. The clips are valid and small, so that their ids belong to videos that become ready.
"""

from __future__ import annotations

import itertools
from collections import Counter
from contextlib import suppress
from pathlib import Path

import schemathesis
from hypothesis import HealthCheck, Phase, seed, settings, strategies
from hypothesis.errors import FlakyStrategyDefinition
from hypothesis.stateful import rule, run_state_machine_as_test
from schemathesis.specs.openapi.checks import ignored_auth, positive_data_acceptance, unsupported_method

from service.embedding.encoder import Encoder
from service.media import Decoder
from service.media.synthetic.drawing import write_clip
from service.media.synthetic.scenes import distinct_scenes
from tests.support.library import settings_for
from tests.support.openapi import document
from tests.support.server import logged, serving_here
from tests.support.wait import going_on

CLIPS = 24
STEPS = 16
SECONDS = 40  # enough to reach all operations several times
SHORT_SECONDS = 8
# Responds with a stream, which test_api.py tests.
_LEFT_OUT = "/v1/videos/{video_id}/events"


def test_whatever_follows_whatever(tmp_path: Path, soak: bool, tiny: Encoder, decoder: Decoder) -> None:
    clips = []
    for number, scene in enumerate(distinct_scenes(CLIPS, seed=3)):
        write_clip(scene, tmp_path / f"{number}.mp4", seconds=0.5, fps=4, width=64, height=48)
        clips.append((tmp_path / f"{number}.mp4").read_bytes())
    turn = itertools.cycle(clips)
    answers: Counter[tuple[str, int]] = Counter()
    found: dict[str, str] = {}
    uploaded: list[str] = []
    operations = {
        f"{verb.upper()} {path}" for path, verbs in document()["paths"].items() for verb in verbs if path != _LEFT_OUT
    }
    settings_here = settings_for(tmp_path / "data")
    with logged(tmp_path / "log") as log, serving_here(settings_here, tiny, decoder) as server:
        api = schemathesis.openapi.from_url(f"{server.url}/openapi.json").exclude(path=_LEFT_OUT)
        # A PNG is a valid file by the document, but no video.
        excluded = [ignored_auth, unsupported_method, positive_data_acceptance]
        # schemathesis links no other operation to or from these, so they are called in between.
        others = itertools.cycle(
            one.ok()
            for one in api.get_all_operations()
            if "{" not in one.ok().path and one.ok().path not in ("/v1/videos", "/v1/projections")
        )

        class Walk(api.as_state_machine()):  # type: ignore[misc]
            def before_call(self, case: schemathesis.Case) -> None:
                if case.path == "/v1/videos" and case.method.upper() == "POST":
                    case.query = {**(case.query or {}), "wait": 20}
                if (
                    case.path in ("/v1/videos", "/v1/search/video")
                    and isinstance(case.body, dict)
                    and "file" in case.body
                ):
                    case.body["file"] = next(turn)

            @rule(data=strategies.data())
            def ask_something_else(self, data: strategies.DataObject) -> None:
                case = data.draw(next(others).as_strategy())
                if case.path == "/v1/recommendations" and isinstance(case.body, dict) and uploaded:
                    case.body["positive"] = [{"id": uploaded[-1]}]
                self.before_call(case)
                self.validate_response(case.call(timeout=30), case)

            def get_call_kwargs(self, _: schemathesis.Case) -> dict[str, object]:
                return {"timeout": 30}

            def validate_response(self, response: schemathesis.Response, case: schemathesis.Case, **_: object) -> None:
                operation = f"{case.method.upper()} {case.path}"
                answers[operation, response.status_code] += 1
                if operation == "POST /v1/videos" and response.status_code == 201:
                    uploaded.append(response.json()["id"])
                try:
                    case.validate_response(response, excluded_checks=excluded)
                except Exception as error:  # kept, because the same steps would rarely show the error twice
                    found.setdefault(f"{operation} {response.status_code}", str(error))

        def enough() -> bool:
            return answers["POST /v1/videos", 201] > 0 and len({name for name, _ in answers}) > len(operations) // 2

        for number in going_on(SECONDS if soak else SHORT_SECONDS, enough):
            walks = settings(
                max_examples=3,
                stateful_step_count=STEPS,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            # The library of earlier runs is still there, so the same steps may give other results.
            with suppress(FlakyStrategyDefinition):
                run_state_machine_as_test(seed(number)(Walk), settings=walks)
        said = log.read_text()
    print(*sorted(answers.items()), sep="\n")
    assert not found, "\n\n".join(found.values())
    assert '"level": "error"' not in said
    met = {operation for operation, _ in answers}
    assert met == operations if soak else len(met) > len(operations) // 2
    assert answers["POST /v1/videos", 201] > 0
    assert not soak or answers["GET /v1/videos/{video_id}/recommendations", 200] > 0
