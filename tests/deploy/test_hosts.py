"""deploy/systemd and deploy/squid: judged by systemd-analyze and squid, and tried with our programs and a real proxy."""

import os
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import unittest
from pathlib import Path

from common import DEPLOY, SHUTDOWN, binary, known, run

UNITS = sorted((DEPLOY / "systemd").glob("*.service"))


def directives(unit):
    """name -> values of a unit file."""
    found = {}
    for name, value in re.findall(r"^([A-Za-z]+)=(.*)$", unit.read_text(), re.M):
        found.setdefault(name, []).append(value)
    return found


class Systemd(unittest.TestCase):
    def test_systemd_accepts_the_units(self):
        with tempfile.TemporaryDirectory() as folder:
            for unit in UNITS:
                # The programs are not installed here; every other word is checked as it stands.
                text = unit.read_text().replace("/usr/local/bin/voiceai-", f"{folder}/voiceai-")
                Path(folder, unit.name).write_text(text)
            for service in ("scaler", "tasker"):
                program = Path(folder, f"voiceai-{service}")
                program.write_text("#!/bin/sh\n")
                program.chmod(0o755)
            names = [Path(folder, unit.name.replace("@.", "@1.")) for unit in UNITS]
            shutil.copy(Path(folder, "voiceai-tasker@.service"), Path(folder, "voiceai-tasker@1.service"))
            done = run("systemd-analyze", "verify", *names, code=None)
            self.assertEqual((done.returncode, done.stderr), (0, ""))

    def test_units_are_hardened(self):
        for unit in UNITS:
            told = run("systemd-analyze", "security", "--offline=true", "--threshold=30", unit, code=None)
            self.assertEqual(told.returncode, 0, told.stdout[-400:])

    def test_a_watchdog_follows_the_process_and_a_stop_waits_for_the_drain(self):
        self.assertEqual([unit.name for unit in UNITS], ["voiceai-scaler.service", "voiceai-tasker.service", "voiceai-tasker@.service"])
        for unit in UNITS:
            about = directives(unit)
            self.assertEqual(about["Type"], ["notify"])
            self.assertGreater(int(about["WatchdogSec"][0]), 10)
            self.assertGreater(int(about["TimeoutStopSec"][0]), SHUTDOWN)
            self.assertEqual(about["RestartPreventExitStatus"], ["2 4"])

    def test_several_taskers_on_one_host_do_not_meet(self):
        about = directives(DEPLOY / "systemd/voiceai-tasker@.service")
        self.assertIn("INSTANCE_ID=%H-%i", about["Environment"])
        self.assertEqual(about["RuntimeDirectory"], ["voiceai-tasker-%i"])
        self.assertIn("RUNTIME_DIR=/run/voiceai-tasker-%i", about["Environment"])

    def test_variables_are_settings(self):
        for unit in UNITS:
            service = "scaler" if "scaler" in unit.name else "tasker"
            for pair in directives(unit).get("Environment", []):
                self.assertTrue(known(pair.partition("=")[0], service), pair)

    def test_a_service_tells_systemd_that_it_stops(self):
        """The real program, with a socket as systemd gives it: what it is doing, then that it stops. Nothing answers it."""
        with tempfile.TemporaryDirectory(prefix="vn") as folder:
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            listener.bind(f"{folder}/notify")
            listener.settimeout(20)
            env = {"PATH": os.environ["PATH"], "NOTIFY_SOCKET": f"{folder}/notify", "WATCHDOG_USEC": "2000000", "RUNTIME_DIR": folder,
                   "REDIS_URL": "redis://127.0.0.1:1", "DATABASE_URL": "postgres://x@127.0.0.1:1/x", "LOG_LEVEL": "error"}
            process = subprocess.Popen([binary("tasker"), "run"], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                lines = []
                while "WATCHDOG=1" not in lines:
                    lines.append(listener.recv(1000).decode())
                self.assertTrue(any(line.startswith("STATUS=") for line in lines), lines)
                self.assertNotIn("READY=1", lines, "ready without Redis and PostgreSQL")
                process.terminate()
                while lines[-1] != "STOPPING=1":
                    lines.append(listener.recv(1000).decode())
                process.wait(20)
            finally:
                process.kill()
                process.wait()


class Squid(unittest.TestCase):
    def test_squid_accepts_the_file_without_a_warning(self):
        told = run("squid", "-k", "parse", "-f", DEPLOY / "squid/squid.conf", code=None)
        self.assertEqual(told.returncode, 0, told.stderr)
        for word in ("WARNING", "ERROR", "FATAL", "Bungled"):
            self.assertNotIn(word, told.stderr)

    def test_tunnels_go_where_they_may_and_nowhere_else(self):
        """A real proxy with this very file: ports, folders and the client's network are changed, and the API's name stands for us."""
        target = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=answer, args=(target,), daemon=True).start()
        port = target.getsockname()[1]
        with tempfile.TemporaryDirectory(prefix="vs") as folder:
            os.chmod(folder, 0o777)
            with socket.create_server(("127.0.0.1", 0)) as free:
                listen = free.getsockname()[1]
            Path(folder, "hosts").write_text("127.0.0.1 api.hetzner.cloud smtp.example.com\n")
            text = (DEPLOY / "squid/squid.conf").read_text()
            text = text.replace("http_port 3128", f"http_port 127.0.0.1:{listen}")
            text = text.replace("/var/log/squid", folder)
            text = text.replace("acl inside src 10.0.0.0/8", "acl inside src 127.0.0.0/8")
            # Our stand-in listens on a port of its own, at a loopback address.
            text = text.replace("acl https_port port 443", f"acl https_port port {port}").replace("acl mail_port port 587 465 2525", f"acl mail_port port {port}")
            text = text.replace("127.0.0.0/8 169.254", "127.99.0.0/16 169.254").replace(" ::1/128", "")
            text += f"\nhosts_file {folder}/hosts\npid_filename {folder}/pid\ncoredump_dir {folder}\nnetdb_filename none\n"
            config = Path(folder, "squid.conf")
            config.write_text(text)
            process = subprocess.Popen(["squid", "-N", "-f", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                self.assertEqual(wait_for(lambda: connect(listen, f"api.hetzner.cloud:{port}")), 200)
                self.assertEqual(connect(listen, f"smtp.example.com:{port}"), 200)
                self.assertEqual(connect(listen, "api.hetzner.cloud:22"), 403, "a port that is not named")
                self.assertEqual(connect(listen, f"elsewhere.example.org:{port}"), 403, "a host that is not named")
                self.assertEqual(connect(listen, "169.254.169.254:80"), 403, "the instance's own role")
                self.assertEqual(connect(listen, "10.0.0.5:443"), 403, "an address inside")
                self.assertEqual(connect(listen, f"http://api.hetzner.cloud:{port}/", "GET"), 403, "only tunnels")
                self.assertIn(f"CONNECT api.hetzner.cloud:{port}", Path(folder, "access.log").read_text())
            finally:
                process.terminate()
                try:
                    process.wait(3)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                target.close()


def answer(server):
    while True:
        try:
            client, _ = server.accept()
        except OSError:
            return
        client.close()


def connect(port, target, method="CONNECT"):
    """The status that the proxy answers with."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as proxy:
        host = target.removeprefix("http://").rstrip("/")
        proxy.sendall(f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        reply = proxy.recv(4096).decode(errors="replace")
    return int(reply.split()[1])


def wait_for(attempt, seconds=20):
    deadline = time.monotonic() + seconds
    while True:
        try:
            return attempt()
        except (OSError, IndexError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


class Kamailio(unittest.TestCase):
    """deploy/kamailio is run with real calls elsewhere (crates/scaler/tests); here, that it is accepted as it is shipped."""

    def test_kamailio_accepts_the_site_as_it_is_shipped(self):
        told = run("kamailio", "-c", "-f", DEPLOY / "kamailio/site.cfg", code=None)
        self.assertEqual(told.returncode, 0, told.stdout + told.stderr)
        self.assertIn("config file ok", told.stdout + told.stderr)

    def test_both_ways_of_telling_it_are_accepted(self):
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(DEPLOY / "kamailio", folder, dirs_exist_ok=True)
            site = Path(folder, "site.cfg")
            text = site.read_text()
            self.assertIn("\n##!define WITH_PUSH\n", text)
            for ways in (("#!define WITH_PULL", "#!define WITH_PUSH"), ("##!define WITH_PULL", "#!define WITH_PUSH")):
                site.write_text(text.replace("#!define WITH_PULL", ways[0]).replace("##!define WITH_PUSH", ways[1]))
                told = run("kamailio", "-c", "-f", site, code=None)
                self.assertEqual(told.returncode, 0, told.stdout + told.stderr)
