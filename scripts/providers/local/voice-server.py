#!/usr/bin/env python3
"""A simulated Voice or API server. A SIP dialog is a running call, and so is a TCP connection that its caller keeps open.

Started by scaleUp.sh of the provider `local`. It needs nothing but Python 3, and says of itself in Redis what a real
server says: one JSON heartbeat under its own name, with a lifetime.

A voice server takes calls by SIP over UDP at its port (sip.py): it answers at once, with 503 when it is full, and hangs up
when it is ended.

By TCP, at the same port, a caller is greeted with `200 NAME`, or with `486 BUSY` and the end of the connection when the
server is full. Every line it then sends comes back as it was, so that a caller can tell a living call from a dead one. The
call ends when the caller closes; a call that the server ends (SIGTERM, SIGKILL) is a cut call, which the caller sees.

Input by environment only, since it may hold a password:
  NAME SERVICE GROUP LABELS ID   who it is
  STATE_DIR                      where NAME.json is kept while it runs, and NAME.run is locked
  REDIS_URL                      redis://, rediss://, redis-cluster:// or redis+unix://
  HEARTBEAT_KEY_PREFIX           default voiceai:heartbeat:
  HEARTBEAT_MS HEARTBEAT_TTL_MS  default 1000 and 5000
  CAPACITY                       default 100
  BOOT_DELAY_MS                  from listening to the first heartbeat, default 0; below 0: it never beats
  ADDRESS PORT                   default: a free loopback address, and 5060
"""

import asyncio
import contextlib
import fcntl
import json
import os
import random
import signal
import ssl
import sys
import time
from urllib.parse import unquote, urlsplit

# The folder of the scripts may be read-only, and is not ours to write to.
sys.dont_write_bytecode = True
from sip import Sip  # noqa: E402

VERSION = "local-1"


def log(event, **fields):
    """One JSON line on stderr."""
    print(json.dumps({"event": event, "name": os.environ.get("NAME"), **fields}), file=sys.stderr, flush=True)


class RedisRefused(Exception):
    """The server answered with an error."""


class Redis:
    """As much of the Redis protocol as a heartbeat needs: one connection, one command at a time, made anew on failure."""

    def __init__(self, url):
        parts = urlsplit(url)
        if parts.scheme not in ("redis", "rediss", "redis-cluster", "rediss-cluster", "redis+unix", "unix"):
            raise ValueError(f"REDIS_URL has the scheme {parts.scheme!r}; expected redis, rediss, redis-cluster or redis+unix")
        self.unix = parts.path if parts.scheme.endswith("unix") else None
        self.host = parts.hostname or "127.0.0.1"
        self.port = parts.port or 6379
        self.tls = ssl.create_default_context() if parts.scheme.startswith("rediss") else None
        self.user = unquote(parts.username or "")
        self.password = unquote(parts.password or "")
        database = "" if self.unix else parts.path.strip("/")
        self.database = int(database) if database else 0
        self.reader = self.writer = None

    async def command(self, *words):
        """Sends one command and returns its reply; the connection is dropped on any failure."""
        try:
            if self.writer is None:
                await self.connect()
            try:
                return await self.exchange(words)
            except RedisRefused as refusal:
                # A node of a cluster says which one has the key; that one is kept, since there is only one key.
                if not str(refusal).startswith("MOVED "):
                    raise
                host, _, port = str(refusal).split()[2].rpartition(":")
                self.drop()
                self.host, self.port = host or self.host, int(port)
                await self.connect()
                return await self.exchange(words)
        except RedisRefused:
            raise
        except (OSError, EOFError, asyncio.IncompleteReadError, asyncio.TimeoutError):
            self.drop()
            raise

    async def connect(self):
        if self.unix:
            opened = asyncio.open_unix_connection(self.unix)
        else:
            opened = asyncio.open_connection(self.host, self.port, ssl=self.tls)
        self.reader, self.writer = await asyncio.wait_for(opened, 2)
        if self.password:
            await self.exchange(["AUTH", self.user, self.password] if self.user else ["AUTH", self.password])
        if self.database:
            await self.exchange(["SELECT", str(self.database)])

    async def exchange(self, words):
        parts = [word.encode() for word in words]
        frame = b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
        self.writer.write(frame)
        line = await asyncio.wait_for(self.reader.readuntil(b"\r\n"), 2)
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            raise RedisRefused(rest.decode(errors="replace"))
        if kind == b"$" and rest != b"-1":
            return (await asyncio.wait_for(self.reader.readexactly(int(rest) + 2), 2))[:-2]
        return rest

    def drop(self):
        if self.writer is not None:
            self.writer.close()
        self.reader = self.writer = None


class Server:
    """The calls, and what is told about them."""

    def __init__(self, environment):
        number = lambda name, default: int(environment.get(name) or default)  # noqa: E731
        self.name = environment["NAME"]
        self.service = environment["SERVICE"]
        self.group = environment["GROUP"]
        self.labels = json.loads(environment.get("LABELS") or "{}")
        self.id = environment["ID"]
        self.state_dir = environment["STATE_DIR"]
        self.redis = Redis(environment["REDIS_URL"])
        self.key = (environment.get("HEARTBEAT_KEY_PREFIX") or "voiceai:heartbeat:") + self.name
        self.every = number("HEARTBEAT_MS", 1000) / 1000
        self.lifetime_ms = number("HEARTBEAT_TTL_MS", 5000)
        self.capacity = number("CAPACITY", 100)
        self.boot_delay = number("BOOT_DELAY_MS", 0) / 1000
        self.address = environment.get("ADDRESS") or None
        self.port = number("PORT", 5060)
        self.calls = 0
        self.sip = None

    async def run(self):
        lock = self.take_lock()
        listener = await self.listen()
        self.write_state()
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        log("listening", address=self.address, port=self.port)
        beats = asyncio.create_task(self.beat())
        kept = asyncio.create_task(self.watch_state(stop))
        await stop.wait()
        kept.cancel()
        log("stopping", calls_cut=self.calls)
        if self.sip:
            self.sip.hang_up()
        beats.cancel()
        listener.close()
        # The state goes while the lock is still held, so that a successor of the name never loses its own.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path(".json"))
        lock.close()

    async def watch_state(self, stop):
        """A server whose state was removed can no longer be found or ended by its provider: it ends by itself."""
        while os.path.exists(self.path(".json")):
            await asyncio.sleep(2)
        log("state removed")
        stop.set()

    def path(self, suffix):
        return os.path.join(self.state_dir, self.name + suffix)

    def take_lock(self):
        """Held for as long as the process lives: the proof that the name is in use."""
        lock = open(self.path(".run"), "a", encoding="ascii")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            sys.exit("another server runs under this name")
        return lock

    async def listen(self):
        """Each server has a loopback address of its own, so that all may listen on the one port of the dispatcher set."""
        tries = [self.address] if self.address else [self.random_address() for _ in range(50)]
        for address in tries:
            try:
                listener = await asyncio.start_server(self.call, address, self.port)
            except OSError as error:
                failure = error
                continue
            self.address = address
            self.port = listener.sockets[0].getsockname()[1]
            try:
                await self.listen_sip()
            except OSError as error:
                failure = error
                listener.close()
                continue
            return listener
        sys.exit(f"cannot listen on port {self.port}: {failure}")

    async def listen_sip(self):
        if self.service != "voice":
            return
        shown = f"[{self.address}]" if ":" in self.address else self.address
        loop = asyncio.get_running_loop()
        make = lambda: Sip(f"{shown}:{self.port}", self.admit, self.ended)  # noqa: E731
        _, self.sip = await loop.create_datagram_endpoint(make, local_addr=(self.address, self.port))

    def admit(self):
        if self.calls >= self.capacity:
            return False
        self.calls += 1
        return True

    def ended(self):
        self.calls -= 1

    @staticmethod
    def random_address():
        return f"127.{random.randint(64, 127)}.{random.randint(0, 255)}.{random.randint(1, 254)}"

    def write_state(self):
        state = {
            "id": self.id,
            "name": self.name,
            "pid": os.getpid(),
            "ip": self.address,
            "port": self.port,
            "labels": self.labels,
        }
        # In a folder of its own name, written whole: a reader sees all of it or nothing.
        draft = self.path(f".json.{os.getpid()}")
        with open(draft, "w", encoding="utf-8") as file:
            json.dump(state, file)
        os.rename(draft, self.path(".json"))

    async def call(self, reader, writer):
        if not self.admit():
            writer.write(b"486 BUSY\n")
            writer.close()
            return
        try:
            writer.write(f"200 {self.name}\n".encode())
            while line := await reader.readline():
                writer.write(line)
                await writer.drain()
        except (ConnectionError, ValueError):
            pass
        finally:
            self.ended()
            writer.close()

    async def beat(self):
        if self.boot_delay < 0:
            return
        await asyncio.sleep(self.boot_delay)
        while True:
            text = json.dumps(
                {
                    "service": self.service,
                    "group": self.group,
                    "active": self.calls,
                    "capacity": self.capacity,
                    "atMs": int(time.time() * 1000),
                    "version": VERSION,
                },
                separators=(",", ":"),
            )
            try:
                await self.redis.command("SET", self.key, text, "PX", str(self.lifetime_ms))
            except (OSError, EOFError, asyncio.TimeoutError, RedisRefused) as error:
                log("heartbeat failed", error=f"{type(error).__name__}: {error}")
            await asyncio.sleep(self.every)


def main():
    try:
        server = Server(os.environ)
    except (KeyError, ValueError) as error:
        sys.exit(f"voice-server: {type(error).__name__}: {error}")
    asyncio.run(server.run())


if __name__ == "__main__":
    main()
