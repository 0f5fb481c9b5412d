"""Speaks TLS and passes on to a Unix socket: `python tests/tls_relay.py CERTIFICATE SOCKET` prints its port.

The server of the tests is built without TLS.  Ends when its standard input does."""

from __future__ import annotations

import asyncio
import ssl
import sys
from contextlib import suppress


async def main(certificate: str, path: str) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward, back = await asyncio.open_unix_connection(path)
        await asyncio.gather(_copied(reader, back), _copied(onward, writer))

    server = await asyncio.start_server(relay, "127.0.0.1", 0, ssl=tls)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


async def _copied(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):  # the other side has gone
        while block := await reader.read(65_536):
            writer.write(block)
            await writer.drain()
    writer.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
