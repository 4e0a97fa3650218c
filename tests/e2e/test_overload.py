"""Tests of overload by number, rate and slow clients, against real servers on 127.0.0.1 with short timeouts."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing
from importlib.resources import files
from pathlib import Path

import httpx
import pytest

from service.api.app import create_app, start_runtime
from service.api.protocol import allow_many_connections
from service.api.request_limits import MAX_BODY_BYTES, ConcurrencyLimit
from service.api.timeouts import ClientTimeouts
from service.config import Settings
from service.embedding.encoder import Encoder
from service.errors import Overloaded
from service.media import Decoder
from tests.support.clips import ClipMaker, numbered
from tests.support.library import settings_for
from tests.support.server import Service, serving_here

SHORT = ClientTimeouts(headers_seconds=1, silence_seconds=1, start_seconds=1.5, bytes_per_second=1024, stall_seconds=1)
UPLOAD = (
    "POST /v1/videos HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: {}\r\n\r\n"
)
PLOTLY_BYTES = (Path(str(files("plotly"))) / "package_data" / "plotly.min.js").stat().st_size
PART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.mp4"\r\n\r\n'


def impatient(settings: Settings, model: Encoder, decoder: Decoder) -> AbstractContextManager[Service]:
    """Return a service with short timeouts and no worker."""
    return serving_here(settings, model, decoder, worker=False, timeouts=SHORT)


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory, tiny: Encoder, decoder: Decoder) -> Iterator[int]:
    """Yield the port of a service with short timeouts and an empty library."""
    with impatient(settings_for(tmp_path_factory.mktemp("overload") / "data"), tiny, decoder) as service:
        yield service.port


def connect(port: int) -> socket.socket:
    """Return a connection with a timeout of ten seconds."""
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def rest(client: socket.socket) -> bytes:
    """Return all bytes until the server ends the connection."""
    found = b""
    try:
        while data := client.recv(65536):
            found += data
    except ConnectionResetError:
        pass  # the server resets a connection whose bytes it has not read
    return found


def problem(answer: bytes) -> tuple[int, dict[str, object]]:
    """Return the status and the body of a problem response."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head, answer
    return int(head.split()[1]), json.loads(body)


# --- slow clients


def test_headers_that_drip_are_cut(port: int) -> None:
    with connect(port) as client:
        began = time.monotonic()
        client.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n")
        with pytest.raises(OSError):  # noqa: PT011 - a broken pipe or a reset
            for number in range(100):
                client.sendall(f"X-{number}: y\r\n".encode())
                time.sleep(0.1)
        assert 0.5 < time.monotonic() - began < 4


@pytest.mark.parametrize("said", [b"", b"\r\n", b"GET /livez"])
def test_a_connection_that_asks_nothing_is_cut(port: int, said: bytes) -> None:
    with connect(port) as client:
        client.sendall(said)
        began = time.monotonic()
        assert rest(client) == b""
        assert 0.5 < time.monotonic() - began < 4


def test_the_next_request_of_a_connection_may_not_drip_either(port: int) -> None:
    with connect(port) as client:
        client.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in client.recv(65536)
        client.sendall(b"GET /livez HT")
        began = time.monotonic()
        assert rest(client) == b""
        assert 0.5 < time.monotonic() - began < 4


def test_one_that_is_quick_is_not_cut(port: int) -> None:
    """Send many requests on one connection, over a longer time than the headers of one request may take."""
    with connect(port) as client:
        for _ in range(8):
            client.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200 OK" in client.recv(65536)
            time.sleep(0.2)


def test_an_upload_that_falls_silent(port: int) -> None:
    with connect(port) as client:
        client.sendall(UPLOAD.format(100_000).encode() + PART + b"half of it")
        status, found = problem(rest(client))
        assert status == 408
        assert "no data arrived" in str(found["detail"])


def test_an_upload_that_drips(port: int) -> None:
    with connect(port) as client:
        client.sendall(UPLOAD.format(100_000).encode() + PART)
        began, answer = time.monotonic(), b""
        client.settimeout(0.2)
        while not answer and time.monotonic() - began < 8:
            try:
                client.sendall(b"x")
                answer = client.recv(65536)
            except TimeoutError:
                continue
        status, found = problem(answer)
        assert status == 408
        assert "slowly" in str(found["detail"])
        assert time.monotonic() - began > 1.5


def test_an_upload_at_a_fair_rate_may_take_its_time(port: int) -> None:
    body = PART + b"x" * 30_000 + b"\r\n--b--\r\n"
    with connect(port) as client:
        client.sendall(UPLOAD.format(len(body)).encode())
        for at in range(0, len(body), 2000):
            client.sendall(body[at : at + 2000])
            time.sleep(0.2)
        assert b" 415 " in client.recv(65536)


def test_another_body_that_does_not_come(port: int) -> None:
    with connect(port) as client:
        client.sendall(
            b"POST /v1/search/text HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
        )
        status, found = problem(rest(client))
        assert status == 408
        assert "within 1 s" in str(found["detail"])


def test_an_answer_that_nobody_takes(port: int) -> None:
    """The response is much larger than the buffers at both ends of the connection."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(10)
        client.connect(("127.0.0.1", port))
        client.sendall(b"GET /explore/plotly.js HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(3)
        taken = len(rest(client))
    assert 0 < taken < PLOTLY_BYTES


def test_an_answer_that_is_taken_slowly_comes_to_its_end(port: int) -> None:
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.settimeout(10)
        client.connect(("127.0.0.1", port))
        client.sendall(b"GET /explore/plotly.js HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        found, began = 0, time.monotonic()
        while data := client.recv(1 << 17):
            found += len(data)
            if time.monotonic() - began < 3:
                time.sleep(0.1)
    assert found > PLOTLY_BYTES


# --- wrong lengths


def exchange(port: int, request: bytes) -> bytes:
    """Send a request and return all bytes until the server ends the connection."""
    with connect(port) as client:
        client.sendall(request)
        return rest(client)


def test_lengths_that_lie(port: int) -> None:
    body = PART + b"no clip\r\n--b--\r\n"
    with connect(port) as client:
        client.sendall(UPLOAD.format(len(body) - 12).encode() + body[:-12])
        assert b"closing boundary" in client.recv(65536)
        client.sendall(body[-12:])
        assert problem(rest(client))[0] == 400  # the bytes that follow are not a valid request
    # In one write, the parser sees the invalid request first, and nothing of the upload is stored.
    assert problem(exchange(port, UPLOAD.format(len(body) - 12).encode() + body))[0] == 400
    large = problem(exchange(port, UPLOAD.format(len(body) + 12).encode() + body))
    assert large[0] in (408, 415)
    for wrong in ("-5", "ten", "0x10", "5, 6", "1e3", "9" * 30, ""):
        status, found = problem(exchange(port, UPLOAD.format(wrong).encode() + body))
        assert status in (400, 413, 422), wrong
        assert found["detail"]
    both = UPLOAD.format(5).replace("\r\n\r\n", "\r\nTransfer-Encoding: chunked\r\n\r\n").encode()
    assert problem(exchange(port, both + body))[0] == 400
    with httpx.Client(trust_env=False) as client:
        assert client.get(f"http://127.0.0.1:{port}/v1/videos").json()["items"] == []


def test_a_large_body_that_is_no_upload(port: int) -> None:
    with httpx.Client(trust_env=False, base_url=f"http://127.0.0.1:{port}") as client:
        answer = client.post("/v1/search/text", content=b'{"query": "' + b"x" * (MAX_BODY_BYTES - 20))
        assert answer.status_code == 422  # read completely, then refused as invalid
    with connect(port) as raw:
        raw.sendall(b"POST /v1/search/text HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n")
        raw.sendall(b"x" * (MAX_BODY_BYTES + 1))
        assert problem(rest(raw))[0] == 413


def test_a_client_that_hangs_up_in_an_upload(port: int, caplog: pytest.LogCaptureFixture) -> None:
    with connect(port) as client:
        client.sendall(UPLOAD.format(100_000).encode() + PART + b"half of it")
    time.sleep(0.5)
    with httpx.Client(trust_env=False) as other:
        assert other.get(f"http://127.0.0.1:{port}/readyz").json()["checks"]["load"] == "ok"
        figures = other.get(f"http://127.0.0.1:{port}/metrics").text
    assert 'route="/v1/videos",status="499"' in figures
    assert 'status="500"' not in figures
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


# --- too many requests


def test_a_concurrency_limit() -> None:
    limit = ConcurrencyLimit(2, "tests", 7)
    with limit.acquire(), limit.acquire(), pytest.raises(Overloaded) as full, limit.acquire():
        pass
    assert full.value.retry_after_seconds == 7
    assert limit.in_use == 0


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, tiny: Encoder, decoder: Decoder) -> Iterator[Service]:
    """Yield a service with room for four requests and a short timeout for silent connections."""
    settings = settings_for(tmp_path_factory.mktemp("small") / "data", max_requests=4)
    allow_many_connections()
    with serving_here(settings, tiny, decoder, timeouts=ClientTimeouts(headers_seconds=4)) as running:
        yield running


def test_seventeen_uploads(small: Service, make_clip: ClipMaker) -> None:
    port = small.port
    body = PART + make_clip("a.mp4", numbered(9)).read_bytes() + b"\r\n--b--\r\n"
    head = UPLOAD.format(len(body)).encode()
    with ExitStack() as stack:
        held = [stack.enter_context(connect(port)) for _ in range(16)]
        for client in held:
            client.sendall(head + body[:100])
        time.sleep(0.5)
        with connect(port) as another:
            another.sendall(head + body[:100])
            answer = rest(another)  # at once, though most of the body was never sent
            assert problem(answer)[0] == 429
            assert b"retry-after: " in answer.lower()
            assert b"connection: close" in answer.lower()
        with small.client() as hurried:  # a client that sends everything before it reads also receives the response
            refused = hurried.post("/v1/videos", files={"file": ("large.mp4", b"x" * 20_000_000)})
            assert refused.status_code == 429
        with small.client() as others:
            assert others.get("/v1/videos").status_code == 200
            assert others.get("/readyz").status_code == 200
        held[0].sendall(body[100:])
        assert held[0].recv(65536).startswith(b"HTTP/1.1 202 ")
        with connect(port) as again:  # the slot of the finished upload is free
            again.sendall(head + body)
            assert again.recv(65536).startswith(b"HTTP/1.1 200 ")
    with small.client() as client:
        assert len(client.get("/v1/videos").json()["items"]) == 1


def test_more_requests_than_there_is_room_for(small: Service) -> None:
    """Each request of a burst is served or refused at once; then the service works as before."""

    def ask(number: int) -> tuple[int, float, str | None]:
        with small.client() as client:
            began = time.monotonic()
            answer = client.post("/v1/search/text", json={"query": f"question {number}"})
            assert answer.headers["content-type"] == (
                "application/json" if answer.status_code == 200 else "application/problem+json"
            )
            return answer.status_code, time.monotonic() - began, answer.headers.get("retry-after")

    with ThreadPoolExecutor(32) as pool:
        burst = list(pool.map(ask, range(96)))
    assert {status for status, _, _ in burst} == {200, 429}
    assert all(after == "1" for status, _, after in burst if status == 429)
    assert ask(0)[0] == 200
    with small.client() as client:
        assert client.get("/readyz").status_code == 200


def test_ready_ends_before_the_room_does(tmp_path: Path, tiny: Encoder) -> None:
    """Take slots of the limit directly, because a test cannot control how long a real request takes."""
    settings = settings_for(tmp_path / "data", max_requests=4)
    app = create_app(settings, worker=None, runtime=start_runtime(settings, model=tiny))
    from fastapi.testclient import TestClient

    with TestClient(app) as client, ExitStack() as stack:
        for taken in range(5):
            answer = client.get("/readyz")
            assert answer.status_code == (200 if taken < 3 else 503), taken
            if taken >= 3:
                assert f"{taken} of at most 4" in answer.json()["checks"]["load"]
            found = client.get("/v1/info")
            assert found.status_code == (200 if taken < 4 else 429)
            assert client.get("/livez").status_code == client.get("/metrics").status_code == 200
            if taken < 4:
                stack.enter_context(app.state.request_limits.requests.acquire())


def test_a_queue_that_is_full(tmp_path: Path, make_clip: ClipMaker, tiny: Encoder, decoder: Decoder) -> None:
    settings = settings_for(tmp_path / "data", max_queue=1)
    with impatient(settings, tiny, decoder) as service, service.client() as client:
        statuses = []
        for number in range(3):
            clip = make_clip(f"{number}.mp4", numbered(9 + number)).read_bytes()
            answer = client.post("/v1/videos", files={"file": ("a.mp4", clip)})
            statuses.append(answer.status_code)
        assert statuses == [202, 202, 429]  # no worker takes jobs off the queue
        assert answer.headers["retry-after"] == "60"
        assert "2 videos wait" in answer.json()["detail"]


def test_a_rate(tmp_path: Path, tiny: Encoder, decoder: Decoder) -> None:
    settings = settings_for(tmp_path / "data", requests_per_minute=3, api_keys="one")
    with impatient(settings, tiny, decoder) as service, service.client() as client:
        mine = {"X-API-Key": "one"}
        assert [client.get("/v1/videos", headers=mine).status_code for _ in range(4)] == [200, 200, 200, 429]
        refused = client.get("/v1/videos", headers=mine)
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.headers["content-type"] == "application/problem+json"
        # Guessed keys are counted per address, not per guess, and do not reduce the rate of a valid key.
        guesses = [client.get("/v1/videos", headers={"X-API-Key": f"guess {n}"}).status_code for n in range(4)]
        assert guesses == [403, 403, 403, 429]
        assert client.get("/livez").status_code == 200
    other = settings_for(tmp_path / "b", requests_per_minute=2)
    with impatient(other, tiny, decoder) as service, service.client() as client:
        statuses = [client.get("/v1/videos").status_code for _ in range(3)]
        assert statuses == [200, 200, 429]


def test_a_thousand_idle_connections(small: Service) -> None:
    """Searches stay fast with idle connections, and the server closes the idle ones in the end."""
    port = small.port
    idle = []
    try:
        for _ in range(1000):
            idle.append(connect(port))
        with small.client() as client:
            times = []
            for number in range(20):
                began = time.monotonic()
                assert client.post("/v1/search/text", json={"query": f"words {number}"}).status_code == 200
                times.append(time.monotonic() - began)
            assert sorted(times)[10] < 1
            assert client.get("/readyz").status_code == 200
        began = time.monotonic()
        assert idle[-1].recv(1) == b""  # after its timeout
        assert time.monotonic() - began < 8
    finally:
        for one in idle:
            with closing(one):
                pass
