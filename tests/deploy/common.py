"""What the tests of deploy/ share: where things are, running programs, and what the code says of itself."""

import os
import re
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
DOCS = ROOT / "docs"
SERVICES = ("scaler", "tasker")


def run(*command, env=None, cwd=ROOT, code=0, timeout=120, stdin=None):
    """Runs a program; its exit code must be `code` (None: any). Answers the finished process, output as text."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout, input=stdin)
    if code is not None and done.returncode != code:
        raise AssertionError(f"{' '.join(map(str, command))}: exit code {done.returncode}, expected {code}\n{done.stdout}{done.stderr}")
    return done


def binary(service):
    """The program of a service, built beforehand."""
    path = Path(os.environ["BINARIES"]) / f"voiceai-{service}"
    if not path.exists():
        raise AssertionError(f"{path} is missing; run: cargo build --workspace --bins")
    return path


@cache
def settings():
    """Every setting of docs/configuration.md (which a test of its own keeps true): name -> (type, default, services)."""
    found = {}
    row = re.compile(r"^\| `([A-Z0-9_<>]+)`(?: \(also ([^)]*)\))? \| ([^|]*) \| ([^|]*) \| [^|]* \| ([^|]*) \|", re.M)
    for name, also, kind, default, services in row.findall((DOCS / "configuration.md").read_text()):
        about = (kind.strip(), default.strip().strip("`"), [word.strip() for word in services.split(",")])
        found[name] = about
        for alias in re.findall(r"`([^`]+)`", also or ""):
            found[alias] = about
    assert len(found) > 60, "docs/configuration.md was not understood"
    return found


def known(name, service):
    """True when `name` is a setting of the service, or a variable of the OpenTelemetry library."""
    if name.startswith("OTEL_"):
        return True
    base = name.removesuffix("_FILE")
    about = settings().get(name) or settings().get(base)
    if about is None and name.startswith("QUEUE_"):
        return service == "tasker"
    if about is None or service not in about[2]:
        return False
    return name == base or "secret" in about[0]


def seconds(text):
    """The seconds of a duration such as 30s or 5m."""
    number, unit = re.fullmatch(r"(\d+)(ms|s|m|h|d)?", str(text)).groups()
    return int(number) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, None: 1}[unit]


SHUTDOWN = seconds(settings()["SHUTDOWN_TIMEOUT"][1])


@cache
def metrics():
    """Every metric that the code makes: name -> (kind, unit)."""
    made = {}
    builder = re.compile(r"\.(?:u64|i64|f64)_(observable_)?(up_down_counter|counter|gauge|histogram)\(\s*\"([a-z0-9_.]+)\"\s*\)(.{0,400}?)\.build\(", re.S)
    for source in sorted((ROOT / "crates").glob("*/src/**/*.rs")):
        for _, kind, name, rest in builder.findall(source.read_text()):
            unit = re.search(r"\.with_unit\(\s*\"([^\"]*)\"", rest)
            made[name] = (kind, unit.group(1) if unit else None)
        # A file that makes many has a closure for each kind.
        text = source.read_text()
        for kind, body in re.findall(r"let (counter|gauge|histogram) = ?\n?\s*\|(.*?)(?=\n        let |\n        Self|\n        let this)", text, re.S):
            unit = re.search(r"\.with_unit\(\s*\"([^\"]*)\"", body)
            for name in re.findall(rf"\b{kind}\(\s*\"([a-z0-9_.]+)\"", text):
                made[name] = (kind, unit.group(1) if unit else None)
        # What the leader alone reports: name and unit stand beside each other.
        of_leader = r"(?:LeaderGauge::new\(\s*&[^,]+,|leader_gauge\()\s*\"([a-z0-9_.]+)\",\s*\"([^\"]*)\""
        for name, unit in re.findall(of_leader, text):
            made[name] = ("gauge", unit or None)
    assert "queue.depth" in made and "voiceai.leader.is_leader" in made, "the code was not understood"
    return made


def prometheus_names():
    """Every series name that the collector offers for those metrics: series -> metric."""
    names = {}
    for name, (kind, unit) in metrics().items():
        flat = name.replace(".", "_")
        if unit == "s" and not flat.endswith("_seconds"):
            flat += "_seconds"
        if unit == "ms" and not flat.endswith("_milliseconds"):
            flat += "_milliseconds"
        if unit == "By" and not flat.endswith("_bytes"):
            flat += "_bytes"
        if unit == "1" and kind == "gauge":
            flat += "_ratio"
        if kind == "counter" and not flat.endswith("_total"):
            flat += "_total"
        for series in (f"{flat}_bucket", f"{flat}_sum", f"{flat}_count") if kind == "histogram" else (flat,):
            names[series] = name
    return names
