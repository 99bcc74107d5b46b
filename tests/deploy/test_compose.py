"""deploy/compose: what docker-compose makes of it, and that our programs would start with it."""

import os
import tempfile
import unittest
from pathlib import Path

import yaml
from common import DEPLOY, ROOT, SERVICES, SHUTDOWN, known, run, seconds

COMPOSE = DEPLOY / "compose"
SETS = {"plain": [], "sentinel": ["compose.sentinel.yaml"], "cluster": ["compose.cluster.yaml"]}


def merged(overlays):
    command = ["docker-compose", "--env-file", COMPOSE / ".env.example"]
    for name in ["compose.yaml", *overlays]:
        command += ["--file", COMPOSE / name]
    return yaml.safe_load(run(*command, "config").stdout)


class Compose(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.sets = {name: merged(overlays) for name, overlays in SETS.items()}

    def each(self):
        """Every set, with each of our services in it."""
        return [(whole, whole["services"][service], service) for whole in self.sets.values() for service in SERVICES]

    def test_container_names_are_those_that_operators_know(self):
        plain = self.sets["plain"]["services"]
        for service, name, image in (("scaler", "voiceai-scaler", "voiceai-scaler:"), ("tasker", "voiceai-tasker", "voiceai-tasker:"),
                                     ("otel-collector", "voiceai-otel-collector", "otel/opentelemetry-collector-contrib:0.150.1")):
            self.assertEqual(plain[service]["container_name"], name)
            self.assertTrue(plain[service]["image"].startswith(image), plain[service]["image"])
        for part in ("redis", "postgres", "squid", "smtp-sink"):
            self.assertIn(part, plain)

    def test_no_image_floats(self):
        for name, whole in self.sets.items():
            for service, about in whole["services"].items():
                if service not in SERVICES:
                    tag = about["image"].rpartition(":")[2]
                    self.assertNotIn(tag, ("latest", about["image"]), f"{name}/{service}: {about['image']}")

    def test_services_are_hardened(self):
        for _, about, _ in self.each():
            self.assertTrue(about["read_only"])
            self.assertEqual(about["cap_drop"], ["ALL"])
            self.assertIn("no-new-privileges:true", about["security_opt"])
            self.assertIn("/tmp", about["tmpfs"])
            self.assertEqual(list(about["networks"]), ["inside"], "only the proxy leads out")

    def test_recordings_under_work_lie_on_disk(self):
        for whole, about, service in self.each():
            folder = about["environment"].get("RECORDING_WORK_DIR")
            if service == "tasker":
                image = (DEPLOY / "containers/voiceai-tasker.Dockerfile").read_text()
                self.assertIn(f"--mode=0700 {folder}", image, "a new volume takes its owner from the image")
                names = [mount.split(":")[0] for mount in about["volumes"] if mount.split(":")[1] == folder]
                self.assertEqual(len(names), 1)
                self.assertIn(names[0], whole["volumes"])
            else:
                self.assertIsNone(folder)

    def test_a_stop_waits_for_the_drain(self):
        for _, about, _ in self.each():
            self.assertGreater(seconds(about["stop_grace_period"]), seconds(about["environment"]["SHUTDOWN_TIMEOUT"]))
            self.assertEqual(seconds(about["environment"]["SHUTDOWN_TIMEOUT"]), SHUTDOWN)

    def test_secrets_are_files(self):
        for whole, about, _ in self.each():
            for variable, value in about["environment"].items():
                if any(word in variable for word in ("PASSWORD", "SECRET", "TOKEN", "ACCESS_KEY")):
                    self.assertTrue(variable.endswith("_FILE"), variable)
                if variable.endswith("_FILE"):
                    name = value.removeprefix("/run/secrets/")
                    self.assertIn(name, whole["secrets"], f"{variable} names a secret that is not declared")
                    self.assertIn(name, [grant["source"] for grant in about["secrets"]], f"{variable} names a secret that is not given")

    def test_every_variable_is_a_setting(self):
        for _, about, service in self.each():
            for variable in about["environment"]:
                self.assertTrue(known(variable, service), f"{variable} is no setting of {service}")

    def test_what_is_mounted_exists(self):
        for name, whole in self.sets.items():
            for service, about in whole["services"].items():
                for volume in about.get("volumes", []):
                    source = volume["source"] if isinstance(volume, dict) else volume.split(":")[0]
                    if source.startswith(("/", ".")):
                        self.assertTrue(Path(source).is_file(), f"{name}/{service}: {source}")

    def test_our_programs_accept_the_settings(self):
        """`config check` with just these variables, secrets as real files: no fault, and no warning of an unknown name."""
        with tempfile.TemporaryDirectory() as folder:
            secret = Path(folder) / "secret"
            url = Path(folder) / "url"
            secret.write_text("not-a-real-one-0123456789abcdef\n")
            url.write_text("redis://:secret@redis:6379/1\n")
            for _, about, service in self.each():
                env = {"PATH": os.environ["PATH"]}
                for variable, value in about["environment"].items():
                    if variable.endswith("_FILE"):
                        value = str(url if "REDIS_URL" in variable else secret)
                    env[variable] = "" if value is None else str(value)
                done = run(Path(os.environ["BINARIES"]) / f"voiceai-{service}", "config", "check", env=env, code=None)
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
                self.assertNotIn("warning", (done.stdout + done.stderr).lower())

    def test_sentinel_and_cluster_are_whole(self):
        sentinel, cluster = self.sets["sentinel"]["services"], self.sets["cluster"]["services"]
        for service in SERVICES:
            hosts = sentinel[service]["environment"]["REDIS_URL"].split(",")
            self.assertEqual(len(hosts), 3)
            for host in hosts:
                self.assertIn(host.split(":")[0], sentinel)
            self.assertEqual(sentinel[service]["environment"]["REDIS_SENTINEL_NAME"], "mymaster")
            self.assertIn("sentinel monitor mymaster", (DEPLOY / "redis/sentinel.conf").read_text())
            self.assertEqual(cluster[service]["environment"]["REDIS_CLUSTER_MODE"], "true")
            for host in cluster[service]["environment"]["REDIS_URL"].split(","):
                self.assertIn(host.split(":")[0], cluster)
        self.assertEqual(sum(name.startswith("cluster-") and name != "cluster-join" for name in cluster), 6)
        self.assertIn("DISPATCHER_REDIS_URL_FILE", cluster["scaler"]["environment"], "a Cluster has no database 1")

    def test_hosts_inside_are_not_sent_to_the_proxy(self):
        for whole, about, _ in self.each():
            direct = about["environment"]["NO_PROXY"].split(",")
            for host in ("redis", "postgres", "169.254.169.254"):
                self.assertIn(host, direct)
            for host in about["environment"].get("REDIS_URL", "").split(","):
                if host:
                    self.assertIn(host.split(":")[0], direct)
            self.assertIn(about["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"].split("//")[1].split(":")[0], direct)

    def test_redis_is_started_with_the_settings_that_our_programs_demand(self):
        """The very shell command of each Redis, run here with a real server."""
        for name, service in (("plain", "redis"), ("sentinel", "redis"), ("sentinel", "redis-2"), ("cluster", "cluster-1")):
            with self.subTest(set=name, service=service), tempfile.TemporaryDirectory(prefix="vc") as folder:
                about = self.sets[name]["services"][service]
                script = about["command"][0].replace("$$", "$")
                Path(folder, "password").write_text("pass-word\n")
                for volume in about["volumes"]:
                    source, target = (volume["source"], volume["target"]) if isinstance(volume, dict) else volume.split(":")[:2]
                    if not source.startswith("/"):
                        continue
                    script = script.replace(target + " ", source + " ").replace(target + "'", source + "'")
                script = script.replace("/run/secrets/redis_password", f"{folder}/password").replace("/tmp/redis.conf", f"{folder}/redis.conf").replace("/data", folder)
                # Beside the command's own words: no port, a socket, and an end.
                script = script.replace("exec redis-server", "redis-server").rstrip()
                script += f" --port 0 --unixsocket {folder}/s --daemonize yes --pidfile {folder}/pid"
                if name == "cluster":
                    # A cluster node wants a TCP port; the file alone is looked at.
                    script = script.partition("redis-server ")[0] + "true"
                env = {"PATH": os.environ["PATH"], "REDISCLI_AUTH": "pass-word", **{k: str(v) for k, v in (about.get("environment") or {}).items()}}
                if "REDIS_ARGUMENTS" in env:
                    env["REDIS_ARGUMENTS"] = env["REDIS_ARGUMENTS"].replace("/etc/redis/", f"{DEPLOY}/redis/")
                run("/bin/sh", "-ec", script, env=env)
                written = Path(folder, "redis.conf")
                self.assertIn("requirepass pass-word", written.read_text())
                self.assertEqual(written.stat().st_mode & 0o077, 0, "the password can be read by others")
                if name == "cluster":
                    self.assertIn("cluster-enabled yes", written.read_text())
                    continue
                try:
                    for key, value in (("maxmemory-policy", "noeviction"), ("appendonly", "yes"), ("min-replicas-to-write", "1" if name == "sentinel" else "0")):
                        for _ in range(50):
                            told = run("redis-cli", "-s", f"{folder}/s", "config", "get", key, env=env, code=None).stdout.split()
                            if told:
                                break
                        self.assertEqual(told, [key, value])
                finally:
                    run("redis-cli", "-s", f"{folder}/s", "shutdown", "nosave", env=env, code=None)

    def test_secrets_and_choices_are_not_committed(self):
        ignored = (COMPOSE / ".gitignore").read_text().split()
        self.assertIn(".env", ignored)
        self.assertIn("secrets/", ignored)
        self.assertEqual(run("git", "ls-files", "deploy/compose/secrets", "deploy/compose/.env", cwd=ROOT).stdout, "")
