"""The scripts of the provider `aws`: with the real command line against moto, and, for what moto does not do (client tokens,
capacity, throttling, health), with a stand-in for the command line that answers as it is told."""

import json
import os
import pathlib
import socket
import subprocess
import tempfile
import time
import unittest
import urllib.request

import running
from running import CommandLines

OPERATION = "0191d1a0-7b1c-7000-8000-000000000001"
LABELS = {"managed-by": "voiceai-scaler", "group": "eu", "role": "api", "environment": "dev", "operation": OPERATION}
SECRET = "secretcanary0123456789"
GROUP = "arn:aws:elasticloadbalancing:eu-central-1:123456789012:targetgroup/api/0123456789abcdef"

# Answers with the first line of the file named after the operation, and goes on to the next with each call; the last stays.
# A line is JSON, or `! TEXT` for an error. What it was called with is written down.
STAND_IN = """#!/usr/bin/env bash
set -eu
here=$(dirname -- "$0")
printf '%s\\0' "$@" >>"$here/calls"
printf '\\n' >>"$here/calls"
for word in "$@"; do
  if [ -f "$here/$word.answers" ]; then operation=$word; fi
done
answers=$here/$operation.answers
line=$(head -n 1 "$answers")
if [ "$(wc -l <"$answers")" -gt 1 ]; then tail -n +2 "$answers" >"$answers.new"; mv "$answers.new" "$answers"; fi
case $line in
  '! '*) printf '\\n%s\\n' "${line#! }" >&2; exit 254 ;;
  *) printf '%s\\n' "$line" ;;
esac
"""


class AwsTest(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.config = {"region": "eu-central-1", "imageId": "ami-12345678", "pollMs": 10, "waitSeconds": 20}

    def settings(self, **changes):
        return {
            "PATH": "/usr/bin:/bin", "TMPDIR": str(self.folder), "OPERATION_ID": OPERATION, "INSTANCE_NAME": "dev-api-01",
            "GROUP_NAME": "eu", "SERVICE": "api", "ENVIRONMENT": "dev", "LABELS": LABELS, "PROVIDER_CONFIG": self.config,
            "CANDIDATE": {"type": "t3.small", "location": "eu-central-1a"}, "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
            "AWS_SECRET_ACCESS_KEY": SECRET, **changes,
        }

    def expect(self, code, script, status=None, error=None, name="dev-api-01", **changes):
        ended = running.run("aws", script, self.settings(**changes), name)
        self.assertNotIn(SECRET, ended.stdout + ended.stderr)
        self.assertEqual(ended.code, code, ended)
        if status:
            self.assertEqual(ended.status, status, ended)
        if error:
            self.assertEqual(ended.error, error, ended)
        return ended


def instance(state="running", number="i-0123456789abcdef0", operation=OPERATION, **more):
    tags = {**LABELS, "operation": operation, "Name": "dev-api-01"} if operation else {"Name": "dev-api-01"}
    return {"InstanceId": number, "State": {"Name": state}, "InstanceType": "t3.small", "PrivateIpAddress": "10.0.0.7",
            "PublicIpAddress": "203.0.113.7", "Placement": {"AvailabilityZone": "eu-central-1a"}, "LaunchTime": "2026-01-30T23:55:00Z",
            "Tags": [{"Key": key, "Value": value} for key, value in tags.items()], **more}


def listing(*instances):
    return {"Reservations": [{"Instances": [one]} for one in instances]}


def failure(code, operation="RunInstances", message=f"no {SECRET}"):
    return f"! An error occurred ({code}) when calling the {operation} operation: {message}"


OK = {"InstanceStatuses": [{"InstanceStatus": {"Status": "ok"}, "SystemStatus": {"Status": "ok"}}]}
STARTING = {"InstanceStatuses": [{"InstanceStatus": {"Status": "initializing"}, "SystemStatus": {"Status": "ok"}}]}


class StandIn(AwsTest):
    def setUp(self):
        super().setUp()
        self.bin = self.folder / "bin"
        self.bin.mkdir()
        (self.bin / "aws").write_text(STAND_IN)
        (self.bin / "aws").chmod(0o755)
        self.answers({"describe-instances": [listing()], "describe-instance-status": [OK], "terminate-instances": [{}],
                      "run-instances": [{"Instances": [instance()]}], "register-targets": [""], "deregister-targets": [""]})

    def settings(self, **changes):
        return super().settings(**{"PATH": f"{self.bin}:/usr/bin:/bin", **changes})

    def answers(self, answers):
        (self.bin / "calls").write_text("")
        for operation, lines in answers.items():
            text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
            (self.bin / f"{operation}.answers").write_text(text)

    def calls(self, operation):
        lines = (self.bin / "calls").read_text().split("\0\n")
        return [call for call in (line.split("\0") for line in lines) if operation in call]

    def requests(self):
        return [json.loads(call[call.index("--cli-input-json") + 1]) for call in self.calls("run-instances")]

    def test_the_request_is_bound_to_the_operation_and_to_the_candidate(self):
        self.config |= {"subnets": {"eu-central-1a": "subnet-0123456789"}, "securityGroupIds": ["sg-0123456789"], "keyName": "ops $(id)",
                        "iamInstanceProfile": "voice", "tags": {"team": "a b", "operation": "forged"}}
        file = self.folder / "init.yaml"
        file.write_text("#cloud-config\n")
        ended = self.expect(0, "scaleUp", "ready", CLOUD_INIT_FILE=str(file), AWS_ENDPOINT_URL="http://127.0.0.1:1")
        self.assertEqual(ended.answer["id"], "i-0123456789abcdef0")
        self.assertEqual((ended.answer["ip"], ended.answer["private_ip"]), ("203.0.113.7", "10.0.0.7"))
        [request] = self.requests()
        tags = {tag["Key"]: tag["Value"] for tag in request["TagSpecifications"][0]["Tags"]}
        self.assertEqual(tags, {**LABELS, "team": "a b", "Name": "dev-api-01"})
        self.assertEqual([entry["ResourceType"] for entry in request["TagSpecifications"]], ["instance", "volume"])
        self.assertEqual(request["MetadataOptions"], {"HttpTokens": "required", "HttpPutResponseHopLimit": 2, "HttpEndpoint": "enabled"})
        self.assertEqual((request["ImageId"], request["InstanceType"], request["SubnetId"], request["SecurityGroupIds"], request["KeyName"],
                          request["IamInstanceProfile"], request["Placement"], request["MinCount"], request["MaxCount"]),
                         ("ami-12345678", "t3.small", "subnet-0123456789", ["sg-0123456789"], "ops $(id)", {"Name": "voice"},
                          {"AvailabilityZone": "eu-central-1a"}, 1, 1))
        self.assertTrue(request["ClientToken"].startswith(OPERATION) and len(request["ClientToken"]) <= 64)
        [call] = self.calls("run-instances")
        self.assertIn(f"fileb://{file}", call)
        self.assertEqual(call[call.index("--endpoint-url") + 1], "http://127.0.0.1:1")
        self.expect(0, "scaleUp", CANDIDATE={"location": "eu-central-1a", "type": "t3.small"})
        self.expect(0, "scaleUp", CANDIDATE={"type": "t3.large"})
        tokens = [request["ClientToken"] for request in self.requests()]
        self.assertEqual((tokens[0] == tokens[1], tokens[0] == tokens[2]), (True, False))

    def test_errors_become_the_agreed_exits(self):
        for code, exit_code in [
            ("InsufficientInstanceCapacity", 11), ("Unsupported", 11), ("InsufficientFreeAddressesInSubnet", 11),
            ("VcpuLimitExceeded", 12), ("InstanceLimitExceeded", 12), ("MaxSpotInstanceCountExceeded", 12),
            ("RequestLimitExceeded", 13), ("Throttling", 13), ("UnauthorizedOperation", 20), ("AuthFailure", 20),
            ("InvalidAMIID.NotFound", 20), ("InvalidParameterValue", 20), ("ExpiredToken", 20),
        ]:
            with self.subTest(code=code):
                self.answers({"run-instances": [failure(code)]})
                ended = self.expect(exit_code, "scaleUp", "failed", code)
                self.assertEqual(ended.answer["error"]["retry_after_s"] is not None, exit_code == 13)
        for text, exit_code in [("Unable to locate credentials", 20), ("Could not connect to the endpoint URL", 10)]:
            self.answers({"describe-instances": [f"! {text}"]})
            self.expect(exit_code, "scaleUp")
        self.answers({"describe-instances": [failure("RequestLimitExceeded", "DescribeInstances")]})
        for script in ["scalingStatus", "scaleDown", "routeIn", "routeOut"]:
            self.expect(13, script)

    def test_an_unknown_outcome_leads_to_the_instance_or_is_told_as_unknown(self):
        for told in [failure("InternalError"), "! Read timeout on endpoint URL", failure("IdempotentParameterMismatch"), "<html>", {}]:
            with self.subTest(told=told):
                self.answers({"describe-instances": [listing(), listing(), listing(instance())], "run-instances": [told]})
                self.expect(0, "scaleUp", "ready")
                self.answers({"describe-instances": [listing()]})
                self.expect(1, "scaleUp", "failed")
                self.assertEqual(len(self.calls("run-instances")), 1)

    def test_a_token_that_is_used_up_is_replaced(self):
        self.answers({"run-instances": [failure("IdempotentInstanceTerminated"), {"Instances": [instance()]}]})
        self.expect(0, "scaleUp", "ready")
        tokens = [request["ClientToken"] for request in self.requests()]
        self.assertEqual(tokens[1], tokens[0] + "-2")

    def test_an_instance_that_cannot_be_had_after_all(self):
        for code, exit_code in [("Server.InsufficientInstanceCapacity", 11), ("Client.VolumeLimitExceeded", 12), ("Server.InternalError", 10)]:
            self.answers({"run-instances": [{"Instances": [instance("pending")]}],
                          "describe-instances": [listing(), listing(instance("terminated", StateReason={"Code": code, "Message": "m"}))]})
            ended = self.expect(exit_code, "scaleUp", "failed", code)
            self.assertIsNone(ended.answer["id"])

    def test_ours_is_adopted_and_others_are_not(self):
        self.answers({"describe-instances": [listing(instance())]})
        self.expect(0, "scaleUp", "ready")
        self.assertEqual(self.calls("run-instances"), [])
        for operation in ["another", None]:
            self.answers({"describe-instances": [listing(instance(operation=operation))]})
            for script in ["scaleUp", "scalingStatus", "scaleDown", "routeIn", "routeOut"]:
                self.expect(20, script, error="not_ours")
            self.expect(20, "scaleDown", error="not_ours", PROVIDER_ID="i-0123456789abcdef0")
        self.assertEqual(self.calls("run-instances") + self.calls("terminate-instances"), [])
        # Ours is gone; another one has its name.
        self.answers({"describe-instances": [listing(instance(operation="x")), failure("InvalidInstanceID.NotFound", "DescribeInstances")]})
        self.expect(0, "scaleDown", "absent", PROVIDER_ID="i-0123456789abcdef1")

    def test_of_several_of_one_operation_the_oldest_stays(self):
        later = instance(number="i-0123456789abcdef9", LaunchTime="2026-01-30T23:56:00Z")
        self.answers({"describe-instances": [listing(later, instance())]})
        self.assertEqual(self.expect(0, "scaleUp").answer["id"], "i-0123456789abcdef0")
        [call] = self.calls("terminate-instances")
        self.assertEqual(call[call.index("--instance-ids") + 1:], ["i-0123456789abcdef9"])

    def test_each_state_has_its_word_and_a_broken_answer_is_none(self):
        for state, code, word in [("pending", 0, "creating"), ("running", 0, "ready"), ("shutting-down", 0, "deleting"),
                                  ("stopping", 0, "failed"), ("stopped", 0, "failed"), ("terminated", 14, "absent")]:
            self.answers({"describe-instances": [listing(instance(state))]})
            self.expect(code, "scalingStatus", word)
        self.answers({"describe-instances": [listing(instance())], "describe-instance-status": [STARTING]})
        self.expect(0, "scalingStatus", "creating")
        for told in ["{}", "[]", "<html>", '{"Reservations": null}', '{"Reservations": [{}]}']:
            self.answers({"describe-instances": [told]})
            for script in ["scalingStatus", "scaleDown"]:
                self.expect(10, script)
            self.assertEqual(self.calls("terminate-instances"), [])

    def test_a_list_is_every_instance_of_ours_or_none_at_all(self):
        ours = {"LABELS": {"managed-by": "voiceai-scaler", "environment": "dev"}}
        self.answers({"describe-instances": [listing(instance(), instance("pending", "i-00000000000000002", "op-2"))]})
        code, servers = running.run_list("aws", self.settings(**ours))
        self.assertEqual(code, 0)
        self.assertEqual([(one["name"], one["status"], one["labels"]["operation"]) for one in servers.values()],
                         [("dev-api-01", "ready", OPERATION), ("dev-api-01", "creating", "op-2")])
        [call] = self.calls("describe-instances")
        self.assertIn('{"Name":"tag:environment","Values":["dev"]}', "".join(call))
        for broken in [{}, {"Reservations": None}, {"Reservations": [], "NextToken": "x"}, {"Reservations": [{"Instances": None}]},
                       {"Reservations": [{"Instances": [{"State": {"Name": "running"}}]}]}, failure("InternalError", "DescribeInstances")]:
            self.answers({"describe-instances": [broken]})
            self.assertEqual(running.run_list("aws", self.settings(**ours))[0], 10, broken)
        self.answers({"describe-instances": [{"Reservations": []}]})
        self.assertEqual(running.run_list("aws", self.settings(**ours)), (0, {}))
        self.assertEqual(running.run_list("aws", self.settings(LABELS={"environment": "dev"})), (20, "bad_input"))

    def test_routing_waits_for_health_and_for_the_last_connection(self):
        self.config |= {"targetGroupArns": [GROUP], "targetPort": 8080}
        health = lambda state: {"TargetHealthDescriptions": [{"TargetHealth": {"State": state}}]}
        self.answers({"describe-instances": [listing(instance())], "describe-target-health": [health("initial"), health("healthy")]})
        self.expect(0, "routeIn", "ready")
        [call] = self.calls("register-targets")
        self.assertIn('[{"Id":"i-0123456789abcdef0","Port":8080}]', call)
        self.answers({"describe-target-health": [health("draining"), health("draining"), {"TargetHealthDescriptions": []}]})
        self.expect(0, "routeOut", "ready")
        self.assertEqual(len(self.calls("describe-target-health")), 3)
        self.config |= {"waitSeconds": 0}
        self.answers({"describe-target-health": [health("draining")]})
        self.expect(10, "routeOut", error="draining")
        self.answers({"describe-target-health": [health("unhealthy")]})
        self.expect(10, "routeIn", error="not_healthy")
        self.answers({"describe-instances": [listing()]})
        self.expect(14, "routeOut", "absent")

    def test_hostile_and_wrong_values_are_named_and_run_nothing(self):
        canary = self.folder / "canary"
        code = f"x[$(touch {canary})]"
        base = self.config
        (self.folder / "big").write_text("x" * 16385)
        for changes in [
            {"INSTANCE_NAME": code}, {"PROVIDER_ID": code}, {"LABELS": code}, {"LABELS": {"role": "api"}}, {"LABELS": {"operation": 7}},
            {"CANDIDATE": {"type": code}}, {"CANDIDATE": {"type": "t3.small", "location": "us-east-1a"}}, {"CANDIDATE": code},
            {"PROVIDER_CONFIG": {**base, "pollMs": code}}, {"PROVIDER_CONFIG": {**base, "targetPort": code}},
            {"PROVIDER_CONFIG": {**base, "imageId": code}}, {"PROVIDER_CONFIG": {**base, "region": code}},
            {"PROVIDER_CONFIG": {**base, "targetGroupArns": [code]}}, {"PROVIDER_CONFIG": {**base, "subnetId": code}},
            {"PROVIDER_CONFIG": {**base, "securityGroupIds": [code]}}, {"PROVIDER_CONFIG": {**base, "tags": {"aws:x": "y"}}},
            {"PROVIDER_CONFIG": {"imageId": "ami-12345678"}}, {"PROVIDER_CONFIG": {"region": "eu-central-1"}},
            {"AWS_ENDPOINT_URL": code}, {"AWS_ENDPOINT_URL": "http://u:p@127.0.0.1"}, {"CLOUD_INIT_FILE": str(self.folder / "big")},
        ]:
            with self.subTest(changes=changes):
                ended = self.expect(20, "scaleUp", name=None, **changes)
                self.assertIn(ended.error, ("bad_input", "user_data_too_large"))
        self.assertEqual((self.bin / "calls").read_text(), "")
        self.assertFalse(canary.exists())
        (self.folder / "big").write_text("x" * 16384)
        self.expect(0, "scaleUp", CLOUD_INIT_FILE=str(self.folder / "big"))
        self.assertEqual(sorted(path.name for path in self.folder.iterdir()), ["big", "bin"], "nothing is left behind")


class Moto(AwsTest):
    """The real command line against moto's EC2 and load balancers."""

    def setUp(self):
        super().setUp()
        # Each call of the real command line takes a second, and more on a busy machine.
        self.config["waitSeconds"] = running.PATIENCE_S
        self.cli = os.environ["AWS_CLI_FOLDER"]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{port}"
        server = subprocess.Popen([os.environ["MOTO_SERVER"], "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL,
                                  stderr=subprocess.DEVNULL)
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        until = time.monotonic() + running.PATIENCE_S
        while True:
            try:
                opener.open(f"{self.endpoint}/moto-api/").close()
                break
            except OSError:
                self.assertIsNone(server.poll(), "moto ended")
                self.assertLess(time.monotonic(), until, "moto does not answer")
                time.sleep(0.05)

    def settings(self, **changes):
        return super().settings(**{"PATH": f"{self.cli}:/usr/bin:/bin", "AWS_ENDPOINT_URL": self.endpoint, "NO_PROXY": "*", **changes})

    def aws(self, *words):
        told = subprocess.run([f"{self.cli}/aws", "--region", "eu-central-1", "--endpoint-url", self.endpoint, "--output", "json", *words],
                              env=running.environment(self.settings()), capture_output=True, text=True, check=True, timeout=running.PATIENCE_S)
        return json.loads(told.stdout or "{}")

    def test_an_instances_life(self):
        with CommandLines() as lines:
            file = self.folder / "init.yaml"
            file.write_text("#cloud-config\n# datacanary\n")
            made = self.expect(0, "scaleUp", "ready", CLOUD_INIT_FILE=str(file))
        number = made.answer["id"]
        self.assertTrue(lines.having("run-instances"), "the command line was not seen: this test would see nothing")
        self.assertEqual(lines.having(SECRET) + lines.having("datacanary"), [])
        again = self.expect(0, "scaleUp", "ready")
        self.assertEqual(again.answer, made.answer)
        told = self.aws("ec2", "describe-instances")["Reservations"]
        self.assertEqual([one["InstanceId"] for entry in told for one in entry["Instances"]], [number])
        tags = {tag["Key"]: tag["Value"] for tag in told[0]["Instances"][0]["Tags"]}
        self.assertEqual(tags, {**LABELS, "Name": "dev-api-01"})
        listed = running.run_list("aws", self.settings(LABELS={"managed-by": "voiceai-scaler", "environment": "dev"}))
        self.assertEqual(listed, (0, {number: {"id": number, "name": "dev-api-01", "status": "ready", "labels": LABELS}}))
        network = self.aws("ec2", "describe-vpcs")["Vpcs"][0]["VpcId"]
        group = self.aws("elbv2", "create-target-group", "--name", "api", "--protocol", "HTTP", "--port", "3001", "--vpc-id", network)
        group = group["TargetGroups"][0]["TargetGroupArn"]
        self.config |= {"targetGroupArns": [group]}

        def targets():
            told = self.aws("elbv2", "describe-target-health", "--target-group-arn", group)
            return [entry["Target"] for entry in told["TargetHealthDescriptions"]]

        self.expect(0, "routeIn", "ready")
        self.assertEqual(targets(), [{"Id": number, "Port": 3001}])
        self.expect(0, "routeOut", "ready")
        self.assertEqual(targets(), [])
        self.expect(20, "scaleDown", error="not_ours", LABELS={**LABELS, "operation": "another"})
        self.expect(0, "scaleDown", "absent", PROVIDER_ID=number)
        self.expect(14, "scalingStatus", "absent", PROVIDER_ID=number)


if __name__ == "__main__":
    unittest.main()
