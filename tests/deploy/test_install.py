"""docs/install.md, command by command, as far as a machine without a registry allows: the very lines of the page in a shell, with
`docker` stood in for by shim.py, on real servers and with the real programs."""

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

from common import DOCS, ROOT, binary, run

PAGE = (DOCS / "install.md").read_text()


def commands():
    """The lines after `$ ` of the page's first way, section by section."""
    section = PAGE[PAGE.index("## One host with Compose"):PAGE.index("### Redis that survives a host")]
    steps = []
    for heading, body in re.findall(r"^### (\d+\. .*?)\n(.*?)(?=^### |\Z)", section, re.M | re.S):
        for block in re.findall(r"^```console\n(.*?)^```", body, re.M | re.S):
            for line in block.splitlines():
                if not line.startswith("$ "):
                    raise AssertionError(f"{heading}: a line that is no command: {line}")
                steps.append((heading, line[2:]))
    return steps


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


class Install(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        for service in ("scaler", "tasker"):
            binary(service)
        cls.home = Path(tempfile.mkdtemp(prefix="vi"))
        cls.stack = {**os.environ, "VOICEAI_STACK_DIR": str(cls.home / "stack")}
        cls.addClassCleanup(cls.clean_up)
        lines = run("bash", "scripts/stack/stack-up.sh", env=cls.stack, timeout=180).stdout
        cls.exports = dict(re.findall(r"^export (\w+)=(.*)$", lines, re.M))
        cls.exports = {name: value.strip("'\"") for name, value in cls.exports.items()}

    @classmethod
    def clean_up(cls):
        for pid in (cls.home / "state").glob("*.pid"):
            try:
                os.kill(int(pid.read_text()), signal.SIGKILL)
            except (OSError, ValueError):
                pass
        run("bash", "scripts/stack/stack-down.sh", env=cls.stack, code=None, timeout=60)
        shutil.rmtree(cls.home, ignore_errors=True)

    def test_the_page_does_what_it_says(self):
        # As the release's archive would be: what git has, and nothing of this machine.
        checkout = self.home / "checkout"
        for name in ("deploy", "scripts"):
            shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("secrets", ".env", "__pycache__"))
        state, tools = self.home / "state", self.home / "bin"
        state.mkdir()
        tools.mkdir()
        url = self.exports["DATABASE_URL"]
        about = {"folder": str(checkout), "binaries": os.environ["BINARIES"], "state": str(state), "redis_port": free_port(), "smtp_port": self.exports["SMTP_PORT"],
                 "database": {"url": url, "port": int(re.search(r":(\d+)/", url).group(1)), "name": url.rpartition("/")[2]}}
        (self.home / "shim.json").write_text(json.dumps(about))
        docker = tools / "docker"
        docker.write_text(f"#!/bin/sh\nexec {shutil.which('python')} -B {ROOT}/tests/deploy/shim.py \"$@\"\n")
        docker.chmod(docker.stat().st_mode | stat.S_IXUSR)
        env = {"PATH": f"{tools}:{os.environ['PATH']}", "HOME": str(self.home), "SHIM": str(self.home / "shim.json"), "LANG": "C.UTF-8",
               **{name: self.exports[name] for name in ("S3_BUCKET", "S3_ENDPOINT", "S3_REGION", "S3_ACCESS_KEY", "S3_SECRET_KEY")}}
        steps = commands()
        self.assertGreater(len(steps), 25)
        # One shell for the whole page, as a person has: each command's output and exit code behind a mark.
        script = ""
        for number, (_, command) in enumerate(steps):
            script += f"{command}\nprintf '\\n@@%s %s@@\\n' {number} $?\n"
        began = time.monotonic()
        done = subprocess.run(["bash"], input=script, cwd=checkout, env=env, capture_output=True, text=True, timeout=300)
        outputs = dict(zip(range(len(steps)), re.split(r"\n@@\d+ \d+@@\n", done.stdout)))
        codes = {int(n): int(code) for n, code in re.findall(r"@@(\d+) (\d+)@@", done.stdout)}
        self.assertEqual(len(codes), len(steps), done.stderr)
        for number, (heading, command) in enumerate(steps):
            self.assertEqual(codes[number], 0, f"{heading}: {command}\n{outputs[number]}\n{done.stderr[-3000:]}")
        self.assertLess(time.monotonic() - began, 300)

        def said(part):
            return next(outputs[number] for number, (_, command) in enumerate(steps) if part in command)

        leader = json.loads(said("redis-cli GET"))
        self.assertEqual(leader["instanceId"], "voiceai-tasker")
        self.assertIn("completed", said("jobs show install-1"))
        self.assertIn("eu-voice", said("voiceai-scaler plan"))
        self.assertNotIn("FAILED", said("voiceai-tasker doctor") + said("voiceai-scaler doctor"))
        self.assertRegex(said("backup list"), r"[0-9a-f]{14}")
        folder = checkout / "deploy/compose/secrets"
        self.assertEqual(folder.stat().st_mode & 0o777, 0o700)
        for secret in folder.iterdir():
            self.assertEqual(secret.stat().st_mode & 0o777, 0o444, secret.name)
            if secret.stat().st_size:
                self.assertNotIn(secret.read_text().strip(), done.stdout + done.stderr, f"{secret.name} was shown")

    def test_the_other_ways_name_what_is_there(self):
        for section, names in (("## Kubernetes", ("deploy/kubernetes/chart",)), ("## Hosts with systemd", ("deploy/systemd/voiceai-tasker@.service", "scripts/generate-cloud-init.sh")), ("## On AWS", ("deploy/aws",))):
            body = PAGE[PAGE.index(section):]
            for name in names:
                self.assertIn(name, body)
                self.assertTrue((ROOT / name).exists(), name)
        values = re.search(r"```yaml\n(.*?)```", PAGE, re.S).group(1)
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(values)
            file.flush()
            run(os.environ["HELM"], "template", "voiceai", ROOT / "deploy/kubernetes/chart", "--values", file.name, env={**os.environ, "HOME": tempfile.gettempdir()})


class Rights(unittest.TestCase):
    """The accounts of docs/security.md are enough: both services run, lead and work with just them."""

    def test_the_accounts_of_the_security_page_are_enough(self):
        page = (DOCS / "security.md").read_text()
        account = re.search(r"^ACL SETUSER voiceai on >PASSWORD (.*)$", page, re.M).group(1).split()
        roles = re.search(r"```sql\n(.*?)```", page, re.S).group(1)
        home = Path(tempfile.mkdtemp(prefix="vr"))
        stack = {**os.environ, "VOICEAI_STACK_DIR": str(home / "stack")}
        self.addCleanup(shutil.rmtree, home, ignore_errors=True)
        self.addCleanup(run, "bash", "scripts/stack/stack-down.sh", env=stack, code=None)
        lines = run("bash", "scripts/stack/stack-up.sh", env=stack, timeout=180).stdout
        exports = {name: value.strip("'\"") for name, value in re.findall(r"^export (\w+)=(.*)$", lines, re.M)}
        url, owner = exports["REDIS_URL"], exports["DATABASE_URL"]
        run("redis-cli", "-u", url, "ACL", "SETUSER", "voiceai", "on", ">secret-of-ours", *account)
        # The stack's superuser has the same password; the platform's table is there, as the page takes it to be.
        admin = owner.replace("//voiceai:", "//postgres:")
        platform = 'CREATE TABLE "ServerGroup" (id text PRIMARY KEY, name text UNIQUE);\n'
        run("psql", admin, "-q", "-v", "ON_ERROR_STOP=1", stdin=platform + roles.replace("from your vault", "secret-of-ours"))
        database = re.sub(r"//[^@]*@", "//voiceai_ops:secret-of-ours@", owner)
        env = {"PATH": os.environ["PATH"], "RUNTIME_DIR": str(home), "REDIS_URL": url.replace("//", "//voiceai:secret-of-ours@", 1), "DATABASE_URL": database, "ENVIRONMENT": "rights"}
        logs, running = {}, []
        for service in ("scaler", "tasker"):
            logs[service] = open(home / f"{service}.log", "w+b")
            running.append(subprocess.Popen([binary(service), "run"], env=env, stdout=logs[service], stderr=logs[service]))
        try:
            deadline = time.monotonic() + 60
            for service in ("scaler", "tasker"):
                while run("redis-cli", "-u", url, "EXISTS", f"voiceai:{service}:leader").stdout.strip() != "1":
                    self.assertLess(time.monotonic(), deadline, (home / f"{service}.log").read_text()[-2000:])
                    time.sleep(0.1)
            # A job goes through, and the leaders have held for some renewals.
            run(binary("tasker"), "jobs", "enqueue", "rights.unknown", "--payload", "{}", "--id", "r1", env=env)
            while "no_handler" not in run(binary("tasker"), "jobs", "show", "r1", env=env, code=None).stdout:
                self.assertLess(time.monotonic(), deadline)
                time.sleep(0.1)
            for service in ("scaler", "tasker"):
                told = run(binary(service), "doctor", env=env, code=None).stdout
                self.assertNotRegex(told, r"(?m)^(redis|postgres|leader|dispatcher)\S* +FAILED")
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.wait(40)
        for service in ("scaler", "tasker"):
            self.assertNotIn("NOPERM", (home / f"{service}.log").read_text())
        self.assertEqual(run("redis-cli", "-u", url, "ACL", "LOG").stdout.strip(), "", "Redis refused something")
