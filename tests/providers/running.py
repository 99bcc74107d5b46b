"""Runs provider scripts as the scaler does: by environment alone, and reads their last line."""

import glob
import json
import os
import pathlib
import subprocess
import threading

SCRIPTS = pathlib.Path(__file__).resolve().parents[2] / "scripts"
FIELDS = ["id", "name", "status", "ip", "private_ip", "type", "location", "error"]
STATUSES = {"creating", "ready", "failed", "deleting", "absent"}
# On a machine that does everything at once a script may wait long for its turn.
PATIENCE_S = 60


class Ended:
    def __init__(self, code, stdout, stderr, name):
        self.code, self.stdout, self.stderr = code, stdout, stderr
        lines = stdout.splitlines()
        assert lines, f"exit {code} without a line: {stderr}"
        self.answer = json.loads(lines[-1])
        assert list(self.answer) == FIELDS, self.answer
        assert self.answer["status"] in STATUSES, self.answer
        assert name is None or self.answer["name"] == name, self.answer
        error = self.answer["error"]
        assert error is None or list(error) == ["code", "message", "retry_after_s"], error
        assert code == 0 or error, f"exit {code} without a reason"

    def __repr__(self):
        return f"exit {self.code}: {self.stdout}{self.stderr}"

    @property
    def status(self):
        return self.answer["status"]

    @property
    def error(self):
        return (self.answer["error"] or {}).get("code")


def environment(settings):
    """Text as it is, anything else as JSON; None leaves the variable out."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in settings.items() if value is not None}


def start(provider, script, settings):
    return subprocess.Popen(
        [SCRIPTS / "providers" / provider / f"{script}.sh"], env=environment(settings), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def finish(process, name):
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    return Ended(process.returncode, stdout, stderr, name)


def run_list(provider, settings):
    """Runs list.sh; its servers by id, or the code of its error."""
    process = start(provider, "list", {name: value for name, value in settings.items()
                                       if name not in ("INSTANCE_NAME", "GROUP_NAME", "SERVICE", "CANDIDATE", "PROVIDER_ID", "CLOUD_INIT_FILE")})
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    answer = json.loads(stdout.splitlines()[-1])
    if process.returncode:
        assert answer["error"] and "servers" not in answer, (process.returncode, stdout, stderr)
        return process.returncode, answer["error"]["code"]
    assert list(answer) == ["servers", "error"] and answer["error"] is None, (stdout, stderr)
    assert all(list(server) == ["id", "name", "status", "labels"] and server["status"] in STATUSES for server in answer["servers"]), stdout
    return 0, {server["id"]: server for server in answer["servers"]}


def run(provider, script, settings, name="dev-api-01"):
    return finish(start(provider, script, settings), name)


class CommandLines:
    """Every command line of the machine that was seen while this was open, as anybody could read it."""

    def __init__(self):
        self.seen = set()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.watch)

    def watch(self):
        # Often enough to see a program that runs for a few milliseconds, without keeping a core for it.
        while not self.ended.wait(0.005):
            for path in glob.glob("/proc/[0-9]*/cmdline"):
                try:
                    with open(path, "rb") as file:
                        self.seen.add(file.read())
                except OSError:
                    pass  # it has ended

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()

    def having(self, text):
        return [line for line in self.seen if os.fsencode(text) in line]
