"""Runs a server in a network namespace of its own and passes on what comes to one port outside: for a server that opens
its ports on every address. A socket stays in the namespace that it was made in, so the one that listens is made before
(and inherited), those that reach the server after.

    unshare -n python alone.py LISTENING_FD PORT COMMAND...

It ends, and the server with it, when its standard input does."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys

SIOCSIFFLAGS, IFF_UP_AND_RUNNING = 0x8914, 0x41


def main() -> None:
    """As above."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP_AND_RUNNING))
    server = subprocess.Popen(sys.argv[3:], stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        asyncio.run(_pass_on(listener, int(sys.argv[2]), server))
    finally:
        os.killpg(server.pid, signal.SIGKILL)


async def _pass_on(listener: socket.socket, port: int, server: subprocess.Popen[bytes]) -> None:
    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inside = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_copy(reader, inside[1]), _copy(inside[0], writer))

    await asyncio.start_server(one, sock=listener)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


if __name__ == "__main__":
    main()
