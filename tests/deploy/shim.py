#!/usr/bin/env python3
"""Stands in for `docker` in the test of the install page, where there is no daemon and no registry: the same files, settings and
programs, as processes of this machine. Compose's own reading of the files is docker-compose's.

SHIM names a JSON file: folder (the checkout's copy), binaries, redis_port, smtp_port, database {url, port, name}, state (a folder)."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

ABOUT = json.loads(Path(os.environ["SHIM"]).read_text())
STATE = Path(ABOUT["state"])
HOME = Path(ABOUT["folder"]) / "deploy/compose"
SERVICES = ("scaler", "tasker")


def compose():
    done = subprocess.run(["docker-compose", "config"], cwd=HOME, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return yaml.safe_load(done.stdout)


def environment(service, whole):
    """What the container would have, with this machine's addresses for the names of the other containers."""
    env = {"PATH": os.environ["PATH"], "HOME": str(STATE), "RUNTIME_DIR": str(STATE), "INSTANCE_ID": f"voiceai-{service}", "container": "shim"}
    for name, value in whole["services"][service]["environment"].items():
        if isinstance(value, str) and value.startswith("/run/secrets/"):
            value = whole["secrets"][value.removeprefix("/run/secrets/")]["file"]
        env[name] = "" if value is None else str(value)
    env |= {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(ABOUT["redis_port"]), "DATABASE_HOST": "127.0.0.1", "DATABASE_PORT": str(ABOUT["database"]["port"]),
            "DATABASE_NAME": ABOUT["database"]["name"], "PROVIDER_SCRIPTS_DIR": str(Path(ABOUT["folder"]) / "scripts/providers")}
    if service == "tasker":
        env["SMTP_PORT"] = ABOUT["smtp_port"]
    # No collector and no proxy run here.
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "HTTP_PROXY", "HTTPS_PROXY"):
        env.pop(name, None)
    return env


def program(service):
    return str(Path(ABOUT["binaries"]) / f"voiceai-{service}")


def redis(whole):
    """Redis as Compose starts it: its settings file and the password that the page made."""
    port, password = ABOUT["redis_port"], Path(whole["secrets"]["redis_password"]["file"]).read_text().strip()
    config = STATE / "redis.conf"
    config.write_text(f"include {ABOUT['folder']}/deploy/redis/redis.conf\ndir {STATE}\nbind 127.0.0.1\nport {port}\nrequirepass {password}\ndaemonize yes\npidfile {STATE}/redis.pid\n")
    subprocess.run(["redis-server", config], check=True, stdout=subprocess.DEVNULL)


def up():
    whole = compose()
    for service in SERVICES:
        # What Compose would look for before it starts anything.
        for grant in whole["services"][service]["secrets"]:
            Path(whole["secrets"][grant["source"]]["file"]).read_text()
    redis(whole)
    # The database's password is the page's: Compose hands it to PostgreSQL by the same file.
    password = Path(whole["secrets"]["database_password"]["file"]).read_text().strip()
    subprocess.run(["psql", ABOUT["database"]["url"], "--quiet", "--command", f"ALTER ROLE CURRENT_USER PASSWORD '{password}'"], check=True)
    for service in SERVICES:
        log = open(STATE / f"{service}.log", "ab")
        started = subprocess.Popen([program(service), "run"], env=environment(service, whole), stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
        (STATE / f"{service}.pid").write_text(str(started.pid))
    deadline = time.monotonic() + 60
    for service in SERVICES:
        while subprocess.run([program(service), "healthcheck", "--ready"], env=environment(service, whole), capture_output=True).returncode:
            if time.monotonic() > deadline:
                sys.exit(f"voiceai-{service} is not ready:\n" + (STATE / f"{service}.log").read_text()[-3000:])
            time.sleep(0.2)


def stop():
    for service in SERVICES:
        pid = int((STATE / f"{service}.pid").read_text())
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 35
        while Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z":
            if time.monotonic() > deadline:
                sys.exit(f"voiceai-{service} did not stop within its grace")
            time.sleep(0.1)
        if '"exit_code":0' not in (STATE / f"{service}.log").read_text().replace(" ", ""):
            sys.exit(f"voiceai-{service} did not end with 0:\n" + (STATE / f"{service}.log").read_text()[-2000:])


def execute(words):
    env = {}
    while words[0].startswith("-"):
        if words[0] == "--env":
            name, _, value = words[1].partition("=")
            env[name] = value
            words = words[2:]
        else:
            words = words[1:]
    container, command = words[0], words[1:]
    whole = compose()
    names = {about.get("container_name") for about in whole["services"].values()}
    if container not in names:
        sys.exit(f"no container is named {container}")
    if container == "voiceai-redis":
        script = command[-1].replace("/run/secrets/redis_password", whole["secrets"]["redis_password"]["file"])
        return subprocess.run(["sh", "-c", script.replace("redis-cli", f"redis-cli -p {ABOUT['redis_port']}")]).returncode
    if container == "voiceai-postgres":
        assert command[:5] == ["psql", "--username", "voiceai", "--dbname", "voiceai"], command
        password = Path(whole["secrets"]["database_password"]["file"]).read_text().strip()
        url = f"postgres://voiceai@127.0.0.1:{ABOUT['database']['port']}/{ABOUT['database']['name']}"
        return subprocess.run(["psql", url, *command[5:]], env=os.environ | {"PGPASSWORD": password}).returncode
    service = container.removeprefix("voiceai-")
    assert command[0] == f"voiceai-{service}", command
    return subprocess.run([program(service), *command[1:]], env=environment(service, whole) | env).returncode


def main():
    words = sys.argv[1:]
    if words[0] == "exec":
        return execute(words[1:])
    assert words[0] == "compose", words
    match words[1]:
        case "config":
            compose()
        case "build":
            for service in SERVICES:
                about = compose()["services"][service]["build"]
                assert (Path(about["context"]) / about["dockerfile"]).is_file(), about
        case "up":
            assert "--wait" in words and "--detach" in words
            up()
        case "ps":
            compose()
        case "stop":
            stop()
        case other:
            sys.exit(f"the install page uses docker compose {other}, which this stand-in does not know")
    return 0


sys.exit(main())
