"""Tests of hostile uploads: files that refer to other files, and code that tries to leave the sandbox."""

from __future__ import annotations

import io
import json
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import httpx
import pytest

from service.media import Decoder
from tests.support.clips import ClipMaker, numbered

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux filters system calls")


# --- the sandbox

BREAK_OUT = """
import json, os, resource, signal, socket, subprocess, threading
from service.media.sandbox import enter_sandbox

wall = enter_sandbox()
held, other = socket.socketpair() if wall else (None, None)
done = {}

def attempt(name, act):
    try:
        act()
        done[name] = "done"
    except (OSError, ValueError) as error:
        done[name] = type(error).__name__

attempt("read", lambda: os.open("/etc/hostname", os.O_RDONLY))
attempt("write", lambda: os.open("made", os.O_WRONLY | os.O_CREAT))
attempt("look", lambda: os.stat("/etc/hostname"))
attempt("list", lambda: os.listdir("/"))
attempt("remove", lambda: os.unlink("victim"))
attempt("rename", lambda: os.rename("victim", "other"))
attempt("connect", lambda: socket.socket(socket.AF_INET))
attempt("fork", lambda: os.fork() or os._exit(0))
attempt("execute", lambda: os.execv("/bin/true", ["true"]))
attempt("kill", lambda: os.kill(os.getppid(), 0))
attempt("signal group", lambda: os.killpg(0, 0))
attempt("trace", lambda: __import__("ctypes").CDLL(None, use_errno=True).ptrace(0, 0, 0, 0) and os.open("x", 0))
attempt("raise limits", lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)))
thread = threading.Thread(target=lambda: done.update(thread="done"))
thread.start()
thread.join()
done["memory"] = len(bytearray(50 << 20))
os.write(1, json.dumps([wall, done]).encode())
"""


@linux
def test_a_decoder_that_was_taken_over_finds_nothing_to_take(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("here")
    ran = subprocess.run([sys.executable, "-c", BREAK_OUT], stdout=subprocess.PIPE, check=True, cwd=tmp_path)
    unsandboxed_reason, done = json.loads(ran.stdout)
    assert unsandboxed_reason is None
    assert done.pop("thread") == "done"
    assert done.pop("memory") == 50 << 20
    assert set(done.values()) <= {"PermissionError", "ValueError"}, done
    assert sorted(path.name for path in tmp_path.iterdir()) == ["victim"]


@linux
def test_every_decoder_is_in_the_jail(decoder: Decoder, make_clip: ClipMaker) -> None:
    decoder.probe(make_clip("a.mp4", numbered(3)))
    assert decoder.child_pids
    for pid in decoder.child_pids:
        status = Path(f"/proc/{pid}/status").read_text()
        assert "Seccomp:\t2" in status
        assert "NoNewPrivs:\t1" in status


# --- files that refer to other files


@pytest.fixture
def bait(make_clip: ClipMaker) -> Iterator[tuple[Path, str, list[str]]]:
    """Yield a clip that must not be read, an address that must not be called, and the list of calls to it."""
    secret = make_clip("secret.mp4", numbered(20))
    called: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen() -> None:
            while True:
                try:
                    caller, _ = server.accept()
                except OSError:
                    return
                called.append(repr(caller.recv(1000)))
                caller.close()

        threading.Thread(target=listen, daemon=True).start()
        yield secret, f"http://127.0.0.1:{server.getsockname()[1]}/secret.mp4", called


def _playlist(target: str) -> bytes:
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{target}\n#EXT-X-ENDLIST\n".encode()


def _concat(target: str) -> bytes:
    return f"ffconcat version 1.0\nfile '{target}'\n".encode()


def _session(target: str) -> bytes:
    lines = (
        "v=0",
        "o=- 0 0 IN IP4 127.0.0.1",
        "s=x",
        "c=IN IP4 127.0.0.1",
        f"a=control:{target}",
        "m=video 5004 RTP/AVP 96",
    )
    return "\n".join(lines).encode()


def _dash(target: str) -> bytes:
    return (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
        f'<Representation id="1" bandwidth="1"><BaseURL>{target}</BaseURL></Representation>'
        "</AdaptationSet></Period></MPD>"
    ).encode()


def _subtitle(target: str) -> bytes:
    return f"WEBVTT\n\n00:00.000 --> 00:05.000\n<img src='{target}'>\n".encode()


def _reference(target: str) -> bytes:
    """Return a QuickTime file whose samples are in another file: `dref` with an alias and an address."""
    clip = io.BytesIO()
    with av.open(clip, "w", format="mov") as container:
        stream = container.add_stream("mpeg4", rate=10, width=64, height=48)
        for pixels in numbered(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(stream.encode(None))
    whole = clip.getvalue()
    old = b"\x00\x00\x00\x0curl \x00\x00\x00\x01"
    assert whole.count(old) >= 1
    words = target.encode() + b"\0"
    return whole.replace(old, struct.pack(">I4sI", 12 + len(words), b"url ", 0) + words)


@pytest.mark.parametrize("name", ["clip.mp4", "list.m3u8", "frame_%03d.png"])
@pytest.mark.parametrize("make", [_playlist, _concat, _session, _dash, _subtitle, _reference])
def test_a_file_that_names_another_is_refused_and_the_other_never_opened(
    client: httpx.Client,
    bait: tuple[Path, str, list[str]],
    make: Callable[[str], bytes],
    name: str,
) -> None:
    secret, address, called = bait
    for target in (str(secret), f"file:{secret}", address, f"concat:{secret}|{secret}", f"subfile:,,:{secret}"):
        answer = client.post("/v1/videos", params={"wait": 30}, files={"file": (name, make(target))})
        if make is _reference and answer.is_success:  # the container is valid, but its reference is refused
            assert answer.json()["status"] == "failed", answer.text
            client.delete(f"/v1/videos/{answer.json()['id']}")
        else:
            assert answer.status_code == 415, answer.text
        assert str(secret) not in answer.text
    assert called == []
