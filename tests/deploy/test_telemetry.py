"""The collector's file, alerts and dashboards: whole in themselves, and true to the code."""

import json
import re
import unittest

import yaml
from common import DEPLOY, DOCS, ROOT, metrics, prometheus_names, run

COLLECTOR = DEPLOY / "otel-collector/config.yaml"
RULES = DEPLOY / "alerts/voiceai.rules.yaml"
TESTS = ("voiceai.test.yaml", "voiceai-days.test.yaml")


def rules():
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def series_of(expr):
    """Every series that an expression asks for."""
    text = re.sub(r"\{[^}]*\}|\"[^\"]*\"", "{}", expr)
    text = re.sub(r"\b(by|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", text)
    words = set(re.findall(r"\b[a-zA-Z_][a-zA-Z0-9_:]*\b(?!\s*\()", text))
    language = {"and", "or", "unless", "offset", "by", "on", "bool", "m", "h", "d", "s"}
    return {word for word in words if word not in language and ("_" in word or ":" in word)}


class Collector(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.config = yaml.safe_load(COLLECTOR.read_text())

    def test_every_part_is_declared_and_used(self):
        used = {kind: set() for kind in ("receivers", "processors", "exporters")}
        for name, pipeline in self.config["service"]["pipelines"].items():
            self.assertIn(name, ("traces", "metrics", "logs"))
            for kind in used:
                self.assertTrue(pipeline[kind], f"{name} has no {kind}")
                used[kind] |= set(pipeline[kind])
        for kind, names in used.items():
            self.assertEqual(names, set(self.config[kind]), kind)
        self.assertEqual(set(self.config["service"]["extensions"]), set(self.config["extensions"]))
        self.assertEqual(set(self.config["service"]["pipelines"]), {"traces", "metrics", "logs"})
        storage = self.config["exporters"]["otlp/backend"]["sending_queue"]["storage"]
        self.assertIn(storage, self.config["extensions"])

    def test_memory_is_limited_first_and_batches_come_last(self):
        for pipeline in self.config["service"]["pipelines"].values():
            self.assertEqual((pipeline["processors"][0], pipeline["processors"][-1]), ("memory_limiter", "batch"))

    def test_its_variables_are_given_and_its_ports_are_those_that_others_name(self):
        asked = set(re.findall(r"\$\{env:([A-Z_]+)\}", COLLECTOR.read_text()))
        compose = yaml.safe_load((DEPLOY / "compose/compose.yaml").read_text())
        given = compose["services"]["otel-collector"]["environment"]
        self.assertEqual(asked, set(given))
        self.assertTrue(self.config["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"].endswith(":4317"))
        self.assertTrue(compose["x-settings"]["OTEL_EXPORTER_OTLP_ENDPOINT"].endswith(":4317"))
        mounted = [volume.split(":")[1] for volume in compose["services"]["otel-collector"]["volumes"]]
        self.assertIn(compose["services"]["otel-collector"]["command"][0].removeprefix("--config="), mounted)
        self.assertIn(self.config["extensions"]["file_storage"]["directory"], mounted)


class Alerts(unittest.TestCase):
    def test_promtool_accepts_the_rules(self):
        run("promtool", "check", "rules", RULES)

    def test_promtool_finds_them_firing_and_quiet_as_they_should(self):
        run("promtool", "test", "rules", *TESTS, cwd=RULES.parent)

    def test_each_alert_is_tested_both_ways(self):
        tests = [test for name in TESTS for test in yaml.safe_load((RULES.parent / name).read_text())["tests"]]
        fires = {t["name"].split()[0] for t in tests if any(e["exp_samples"] for e in t["promql_expr_test"])}
        quiet = {t["name"].split()[0] for t in tests if any(not e["exp_samples"] for e in t["promql_expr_test"])}
        alerts = {rule["alert"] for rule in rules() if "alert" in rule}
        self.assertGreater(len(alerts), 20)
        self.assertEqual((alerts - fires, alerts - quiet), (set(), set()))

    def test_each_has_a_runbook_and_each_runbook_an_alert(self):
        alerts = {rule["alert"]: rule for rule in rules() if "alert" in rule}
        for name, rule in alerts.items():
            self.assertEqual(rule["annotations"]["runbook"], f"docs/runbooks/{name}.md")
            page = ROOT / rule["annotations"]["runbook"]
            self.assertTrue(page.is_file(), page)
            text = page.read_text()
            self.assertTrue(text.startswith(f"# {name}\n"), page)
            for heading in ("## What it means", "## Look", "## Do"):
                self.assertIn(heading, text, page)
            self.assertIn(rule["labels"]["severity"], ("page", "ticket", "info"))
        pages = {page.stem for page in (DOCS / "runbooks").glob("Voiceai*.md")}
        self.assertEqual(pages, set(alerts))

    def test_every_series_exists_in_the_code(self):
        names = prometheus_names()
        recorded = {rule["record"] for rule in rules() if "record" in rule}
        for rule in rules():
            asked = series_of(rule["expr"])
            self.assertTrue(asked, rule)
            for series in asked:
                self.assertTrue(series in names or series in recorded, f"{series} of {rule.get('alert') or rule.get('record')} is made nowhere")

    def test_every_label_value_is_one_that_the_code_gives(self):
        code = "".join(path.read_text() for path in (ROOT / "crates").glob("*/src/**/*.rs"))
        for rule in rules():
            for label, _, values in re.findall(r'(\w+)(=~|=|!~|!=)"([^"]*)"', rule["expr"]):
                if label not in ("job", "le"):
                    for value in values.split("|"):
                        self.assertIn(f'"{value}"', code, f"{rule.get('alert')}: {label}={value}")

    def test_a_series_that_does_not_exist_would_be_found(self):
        self.assertEqual(series_of('sum by (queue) (rate(queue_nonsense_total{a="b_c"}[5m])) > 0 and on (x_y) z_z'), {"queue_nonsense_total", "z_z"})


class Dashboards(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.source = yaml.safe_load((DEPLOY / "dashboards/dashboards.yaml").read_text())

    def test_both_kinds_are_made_from_the_one_source(self):
        run("python", DEPLOY / "dashboards/generate.py", "--check")

    def test_every_metric_exists_in_the_code_with_its_kind_and_unit(self):
        made = metrics()
        for name, about in self.source["metrics"].items():
            self.assertIn(name, made, f"{name} is made nowhere")
            kind, unit = made[name]
            self.assertEqual(about["kind"], kind, name)
            self.assertEqual(about.get("unit"), unit, name)

    def test_every_metric_that_is_listed_is_shown(self):
        text = " ".join(panel["expr"] for board in self.source["dashboards"] for panel in board["panels"])
        for name in self.source["metrics"]:
            self.assertRegex(text, f"<{re.escape(name)}[>:]")

    def test_grafana_asks_for_series_that_the_collector_offers(self):
        names = prometheus_names()
        boards = sorted((DEPLOY / "dashboards/grafana").glob("*.json"))
        self.assertEqual(len(boards), len(self.source["dashboards"]))
        for path in boards:
            board = json.loads(path.read_text())
            self.assertEqual(board["templating"]["list"][0]["type"], "datasource")
            self.assertEqual(board["uid"], path.stem)
            for panel in board["panels"]:
                for target in panel["targets"]:
                    for series in series_of(target["expr"]):
                        self.assertIn(series, names, f"{path.name}: {panel['title']}")

    def test_expressions_are_ones_that_prometheus_reads(self):
        """As recording rules, so that promtool's own parser judges them."""
        import tempfile

        records = []
        for path in (DEPLOY / "dashboards/grafana").glob("*.json"):
            for panel in json.loads(path.read_text())["panels"]:
                records.append({"record": f"panel{len(records)}", "expr": panel["targets"][0]["expr"]})
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump({"groups": [{"name": "panels", "rules": records}]}, file)
            file.flush()
            run("promtool", "check", "rules", file.name)

    def test_panels_do_not_lie_on_each_other(self):
        for path in (DEPLOY / "dashboards/grafana").glob("*.json"):
            taken = set()
            for panel in json.loads(path.read_text())["panels"]:
                at = panel["gridPos"]
                cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
                self.assertFalse(cells & taken, f"{path.name}: {panel['title']}")
                taken |= cells

    def test_signoz_asks_for_metrics_by_their_own_names(self):
        made = metrics()
        for path in (DEPLOY / "dashboards/signoz").glob("*.json"):
            board = json.loads(path.read_text())
            self.assertEqual([entry["i"] for entry in board["layout"]], [widget["id"] for widget in board["widgets"]])
            for widget in board["widgets"]:
                names = re.findall(r'\{"([a-z0-9_.]+)"', widget["query"]["promql"][0]["query"])
                self.assertTrue(names, widget["title"])
                for name in names:
                    base = re.sub(r"\.(bucket|sum|count)$", "", name)
                    self.assertIn(base, made, widget["title"])
