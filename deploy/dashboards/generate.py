#!/usr/bin/env python3
"""Writes grafana/*.json and signoz/*.json from dashboards.yaml; with --check only says whether they are what it would write."""

import json
import re
import sys
import uuid
from pathlib import Path

import yaml

HERE = Path(__file__).parent
METRIC = re.compile(r"<([a-z0-9_.]+)(?::(sum|count|bucket))?>(\{[^}]*\})?")
# Any fixed number makes ids that stay the same from run to run.
IDS = uuid.UUID("6f1c5d0e-5f0b-4c0f-9a53-0d1f6f7a2b11")


def prometheus_name(name: str, about: dict, part: str | None) -> str:
    """The name under which the collector's Prometheus exporter offers a metric."""
    flat = name.replace(".", "_")
    if about.get("unit") == "s" and not flat.endswith("_seconds"):
        flat += "_seconds"
    if about.get("unit") == "ms":
        flat += "_milliseconds"
    if about["kind"] == "counter" and not flat.endswith("_total"):
        flat += "_total"
    return f"{flat}_{part}" if part else flat


def spelled(expr: str, metrics: dict, backend: str) -> str:
    """The expression with each <metric> as the backend stores it."""

    def one(found: re.Match) -> str:
        name, part, labels = found.groups()
        about = metrics[name]
        if (part is not None) != (about["kind"] == "histogram"):
            raise SystemExit(f"{name}: a part (:sum, :count, :bucket) belongs to a histogram, and to nothing else")
        if backend == "grafana":
            text = prometheus_name(name, about, part) + (labels or "")
            leads, who = "voiceai_leader_is_leader == 1", "job, instance"
        else:
            dotted = f"{name}.{part}" if part else name
            text = '{"%s"%s}' % (dotted, "," + labels[1:-1] if labels else "")
            leads, who = '{"voiceai.leader.is_leader"} == 1', '"service.name", "service.instance.id"'
        if about.get("leader"):
            text = f"({text} and on ({who}) ({leads}))"
        return text

    return METRIC.sub(one, expr)


def grafana(board: dict, metrics: dict) -> dict:
    panels = []
    x = y = 0
    for number, panel in enumerate(board["panels"], 1):
        stat = panel.get("kind") == "stat"
        width, height = (6, 4) if stat else (12, 8)
        if x + width > 24:
            x, y = 0, y + (4 if panels[-1]["type"] == "stat" else 8)
        panels.append(
            {
                "id": number,
                "type": "stat" if stat else "timeseries",
                "title": panel["title"],
                "description": panel["help"],
                "datasource": {"type": "prometheus", "uid": "${datasource}"},
                "gridPos": {"x": x, "y": y, "w": width, "h": height},
                "fieldConfig": {"defaults": {"unit": panel.get("unit", "short"), "min": 0}, "overrides": []},
                "options": {"reduceOptions": {"calcs": ["lastNotNull"]}} if stat else {"legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]}, "tooltip": {"mode": "multi", "sort": "desc"}},
                "targets": [
                    {
                        "refId": "A",
                        "datasource": {"type": "prometheus", "uid": "${datasource}"},
                        "expr": spelled(panel["expr"], metrics, "grafana"),
                        "legendFormat": "__auto",
                    }
                ],
            }
        )
        x += width
    return {
        "uid": board["uid"],
        "title": board["title"],
        "tags": ["voiceai"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "utc",
        "links": [{"type": "dashboards", "tags": ["voiceai"], "title": "VoiceAI Ops", "asDropdown": True}],
        "templating": {"list": [{"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"}]},
        "panels": panels,
    }


def signoz(board: dict, metrics: dict) -> dict:
    widgets, layout = [], []
    for number, panel in enumerate(board["panels"]):
        ident = str(uuid.uuid5(IDS, f"{board['uid']}/{panel['title']}"))
        legend = panel.get("legend")
        widgets.append(
            {
                "id": ident,
                "title": panel["title"],
                "description": panel["help"],
                "panelTypes": "value" if panel.get("kind") == "stat" else "graph",
                "yAxisUnit": panel.get("unit", "short"),
                "timePreferance": "GLOBAL_TIME",
                "nullZeroValues": "zero",
                "opacity": "1",
                "isStacked": False,
                "query": {
                    "id": str(uuid.uuid5(IDS, f"{ident}/query")),
                    "queryType": "promql",
                    "promql": [
                        {
                            "name": "A",
                            "query": spelled(panel["expr"], metrics, "signoz"),
                            "legend": "{{%s}}" % legend if legend else "",
                            "disabled": False,
                        }
                    ],
                    "clickhouse_sql": [],
                    "builder": {"queryData": [], "queryFormulas": []},
                },
            }
        )
        layout.append({"i": ident, "x": 6 * (number % 2), "y": 6 * (number // 2), "w": 6, "h": 6, "moved": False, "static": False})
    return {"title": board["title"], "description": "", "name": board["uid"], "tags": ["voiceai"], "version": "v4", "uploadedGrafana": False, "variables": {}, "layout": layout, "widgets": widgets}


def main() -> int:
    source = yaml.safe_load((HERE / "dashboards.yaml").read_text())
    stale = []
    for backend, build in (("grafana", grafana), ("signoz", signoz)):
        wanted = {}
        for board in source["dashboards"]:
            wanted[HERE / backend / f"{board['uid']}.json"] = json.dumps(build(board, source["metrics"]), indent=2, ensure_ascii=False) + "\n"
        stale += [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
        stale += [path for path in (HERE / backend).glob("*.json") if path not in wanted]
        if "--check" not in sys.argv:
            (HERE / backend).mkdir(exist_ok=True)
            for path, text in wanted.items():
                path.write_text(text)
    if "--check" in sys.argv and stale:
        print("stale, run python3 deploy/dashboards/generate.py:", *stale, sep="\n  ", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
