"""Run a server in its own network namespace and relay one port from outside to the server.

For servers that open their ports on every address. A socket stays in the namespace in which it was created.
The listening socket is therefore created before the namespace (and inherited). The sockets to the server are created
inside.

    unshare -n python network_relay.py LISTENING_FD PORT COMMAND...

The relay and the server end when the relay's standard input ends.
"""

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
    """Bring up the loopback interface, start the server and relay connections until standard input ends."""
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
