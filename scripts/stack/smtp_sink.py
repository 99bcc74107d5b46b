"""An SMTP server for the private stack: takes every message and writes each into a file of its own.

usage: smtp_sink.py PORT DIRECTORY

A file is named <UTC time>-<number>.eml and appears complete (written under another name first). The envelope stands on
top in X-MailFrom and X-RcptTo headers, then the message as it was received.
"""

import asyncio
import itertools
import os
import signal
import sys
import time

from aiosmtpd.smtp import SMTP

# Larger than any mail we send; a real server has a limit as well.
SIZE_LIMIT = 32 * 1024 * 1024


class Sink:
    """Writes each accepted message into one file."""

    def __init__(self, directory):
        self.directory = directory
        self.numbers = itertools.count(1)

    async def handle_DATA(self, server, session, envelope):
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        name = f"{stamp}-{os.getpid()}-{next(self.numbers):06d}.eml"
        head = [f"X-MailFrom: {envelope.mail_from}"] + [f"X-RcptTo: {to}" for to in envelope.rcpt_tos]
        partial = os.path.join(self.directory, "." + name)
        try:
            with open(partial, "wb") as file:
                file.write("".join(line + "\r\n" for line in head).encode("utf-8", "surrogateescape"))
                file.write(envelope.original_content)
            os.replace(partial, os.path.join(self.directory, name))
        except OSError as error:
            # The client must not think that a message was kept which was not.
            print(f"cannot write {name}: {error}", file=sys.stderr, flush=True)
            return "451 4.3.0 the sink cannot write the message"
        return f"250 2.0.0 kept as {name}"


async def serve(port, directory):
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    sink = Sink(directory)
    server = await loop.create_server(
        lambda: SMTP(sink, hostname="localhost", enable_SMTPUTF8=True, data_size_limit=SIZE_LIMIT),
        host="127.0.0.1",
        port=port,
    )
    print(f"SMTP sink on 127.0.0.1:{port}, messages in {directory}", flush=True)
    await stopping.wait()
    server.close()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    asyncio.run(serve(int(sys.argv[1]), sys.argv[2]))
