"""deploy/kubernetes: the chart rendered by Helm, the base by kustomize, both against Kubernetes' own schemas."""

import json
import os
import tempfile
import unittest
from pathlib import Path

import yaml
from common import DEPLOY, SERVICES, SHUTDOWN, known, run

HOME = DEPLOY / "kubernetes"
CHART = HOME / "chart"
CHANGED = {"app.kubernetes.io/managed-by"}


def render(*arguments, code=0):
    env = {**os.environ, "HOME": tempfile.gettempdir()}
    return run(os.environ["HELM"], "template", "voiceai", CHART, "--namespace", "voiceai", *arguments, env=env, code=code)


def objects(text):
    return [one for one in yaml.safe_load_all(text) if one]


def named(all_objects, kind, name):
    found = [one for one in all_objects if one["kind"] == kind and one["metadata"]["name"] == name]
    assert len(found) == 1, f"{len(found)} of {kind} {name}"
    return found[0]


def container(all_objects, service):
    return named(all_objects, "Deployment", f"voiceai-{service}")["spec"]["template"]["spec"]["containers"][0]


class Kubernetes(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.text = render().stdout
        cls.all = objects(cls.text)

    def valid(self, text):
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(text)
            file.flush()
            run("kubernetes-validate", "--strict", "--quiet", file.name)

    def test_the_chart_is_well_formed(self):
        env = {**os.environ, "HOME": tempfile.gettempdir()}
        run(os.environ["HELM"], "lint", "--strict", CHART, env=env)

    def test_every_object_fits_the_schema_of_kubernetes(self):
        self.valid(self.text)
        self.valid(render("--set", "autoscaling.kind=none", "--set", "networkPolicy.enabled=false").stdout)

    def test_the_base_is_what_the_chart_makes(self):
        for one in self.all:
            one["metadata"]["labels"] = {k: v for k, v in one["metadata"]["labels"].items() if k not in CHANGED}
            template = one["spec"].get("template") if "spec" in one else None
            if template:
                template["metadata"]["labels"] = {k: v for k, v in template["metadata"]["labels"].items() if k not in CHANGED}
        head = "# Made from the chart with its defaults: UPDATE=1 scripts/test-deploy.sh Kubernetes\n"
        text = head + yaml.safe_dump_all(sorted(self.all, key=lambda o: (o["metadata"]["name"], o["kind"])), sort_keys=False)
        if os.environ.get("UPDATE"):
            (HOME / "base/objects.yaml").write_text(text)
        self.assertEqual((HOME / "base/objects.yaml").read_text(), text, "stale: UPDATE=1 scripts/test-deploy.sh Kubernetes")

    def test_kustomize_builds_base_and_example(self):
        built = run("kubectl", "kustomize", HOME / "base").stdout
        self.valid(built)
        self.assertEqual(len(objects(built)), len(objects(self.text)))
        example = HOME / "overlays/example"
        with tempfile.TemporaryDirectory() as folder:
            run("cp", "-r", HOME, folder)
            secrets = Path(folder, "kubernetes/overlays/example/secrets")
            secrets.mkdir()
            for name in ("redis-password", "database-password"):
                (secrets / name).write_text("x")
            made = objects(run("kubectl", "kustomize", Path(folder, "kubernetes/overlays/example")).stdout)
        self.assertTrue(example.exists())
        self.assertEqual({one["metadata"]["namespace"] for one in made}, {"voiceai"})
        kinds = [one["kind"] for one in made]
        self.assertIn("ScaledObject", kinds)
        self.assertNotIn("HorizontalPodAutoscaler", kinds, "two autoscalers would fight")
        self.assertIn({"name": "S3_BUCKET", "value": "example-voiceai-backups"}, container(made, "tasker")["env"])
        self.assertEqual(container(made, "scaler")["image"], "registry.example.com/voiceai-scaler:0.1.0")

    def test_keda_of_chart_and_component_agree(self):
        ours = named(objects(render("--set", "autoscaling.kind=keda").stdout), "ScaledObject", "voiceai-tasker")
        component = yaml.safe_load((HOME / "components/keda/scaledobject.yaml").read_text())
        self.assertEqual(component["spec"], ours["spec"])
        self.assertEqual((ours["spec"]["minReplicaCount"], ours["spec"]["maxReplicaCount"]), (3, 20))

    def test_autoscaling_is_as_agreed(self):
        spec = named(self.all, "HorizontalPodAutoscaler", "voiceai-tasker")["spec"]
        self.assertEqual((spec["minReplicas"], spec["maxReplicas"]), (3, 20))
        self.assertEqual(spec["metrics"][0]["resource"]["target"]["averageUtilization"], 70)
        self.assertEqual(spec["metrics"][1]["external"]["target"], {"type": "AverageValue", "averageValue": "50"})
        adapter = yaml.safe_load((HOME / "prometheus-adapter.yaml").read_text())
        self.assertEqual(adapter["rules"]["external"][0]["name"]["as"], spec["metrics"][1]["external"]["metric"]["name"])
        self.assertNotIn("replicas", named(self.all, "Deployment", "voiceai-tasker")["spec"], "each roll-out would undo the autoscaler")
        self.assertEqual(container(self.all, "tasker")["resources"], {"requests": {"cpu": "500m", "memory": "512Mi"}, "limits": {"cpu": "2", "memory": "2Gi"}})

    def test_pods_are_hardened_and_stop_in_time(self):
        for service in SERVICES:
            pod = named(self.all, "Deployment", f"voiceai-{service}")["spec"]["template"]["spec"]
            self.assertGreater(pod["terminationGracePeriodSeconds"], SHUTDOWN)
            self.assertTrue(pod["securityContext"]["runAsNonRoot"])
            self.assertFalse(pod["automountServiceAccountToken"])
            limits = pod["containers"][0]["securityContext"]
            self.assertEqual((limits["readOnlyRootFilesystem"], limits["allowPrivilegeEscalation"], limits["capabilities"]), (True, False, {"drop": ["ALL"]}))

    def test_recordings_under_work_lie_on_disk(self):
        pod = named(self.all, "Deployment", "voiceai-tasker")["spec"]["template"]["spec"]
        about = pod["containers"][0]
        folder = next(pair["value"] for pair in about["env"] if pair["name"] == "RECORDING_WORK_DIR")
        mount = next(mount for mount in about["volumeMounts"] if mount["mountPath"] == folder)
        volume = next(volume for volume in pod["volumes"] if volume["name"] == mount["name"])
        self.assertEqual(list(volume["emptyDir"]), ["sizeLimit"], "disk, not memory")
        self.assertFalse(any(volume["name"] == mount["name"] for volume in named(self.all, "Deployment", "voiceai-scaler")["spec"]["template"]["spec"]["volumes"]))

    def test_probes_run_the_binary_itself(self):
        for service in SERVICES:
            about = container(self.all, service)
            path = f"/usr/local/bin/voiceai-{service}"
            self.assertEqual(about["livenessProbe"]["exec"]["command"], [path, "healthcheck"])
            self.assertEqual(about["readinessProbe"]["exec"]["command"], [path, "healthcheck", "--ready"])
            self.assertIn(path, (DEPLOY / f"containers/voiceai-{service}.Dockerfile").read_text())

    def test_every_variable_is_a_setting_and_our_programs_accept_them(self):
        with tempfile.NamedTemporaryFile("w") as secret:
            secret.write("not-a-real-one\n")
            secret.flush()
            for service in SERVICES:
                env = {"PATH": os.environ["PATH"]}
                for variable in container(self.all, service)["env"]:
                    self.assertTrue(known(variable["name"], service), f"{variable['name']} is no setting of {service}")
                    env[variable["name"]] = secret.name if variable["name"].endswith("_FILE") else variable["value"]
                done = run(Path(os.environ["BINARIES"]) / f"voiceai-{service}", "config", "check", env=env, code=None)
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_a_grace_longer_than_the_default_is_followed(self):
        made = objects(render("--set", "shutdownTimeoutSeconds=300").stdout)
        pod = named(made, "Deployment", "voiceai-tasker")["spec"]["template"]["spec"]
        self.assertEqual(pod["terminationGracePeriodSeconds"], 305)
        self.assertIn({"name": "SHUTDOWN_TIMEOUT", "value": "300s"}, pod["containers"][0]["env"])

    def test_wrong_values_are_refused(self):
        json.loads((CHART / "values.schema.json").read_text())
        for wrong in ("autoscaling.kind=sometimes", "settings.REDIS_PASSWORD=x", "tasker.settings.HETZNER_API_TOKEN=x", "environment=-x",
                      "image.registry=no-slash", "scaler.replicas=0", "unknown=1", "settings.lower=1"):
            with self.subTest(wrong=wrong):
                done = render("--set", wrong, code=None)
                self.assertNotEqual(done.returncode, 0)
                self.assertIn("schema", done.stderr)

    def test_versions_agree(self):
        chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
        manifest = (DEPLOY.parent / "Cargo.toml").read_text()
        self.assertIn(f'version = "{chart["appVersion"]}"', manifest)
