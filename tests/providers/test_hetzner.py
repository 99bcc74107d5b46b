"""The scripts of the provider `hetzner` against the double of its API: every exit, every fault."""

import json
import os
import pathlib
import signal
import tempfile
import threading
import time
import unittest

import running
from hetzner_double import HetznerDouble
from running import CommandLines

OPERATION = "0191d1a0-7b1c-7000-8000-000000000001"
OTHER = "0191d1a0-7b1c-7000-8000-000000000002"
LABELS = {"managed-by": "voiceai-scaler", "group": "eu", "role": "api", "environment": "dev", "operation": OPERATION}
TOKEN = "tokencanary0123456789"


class HetznerTest(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.api = self.enterContext(HetznerDouble(token=TOKEN))
        self.config = {"pollMs": 20, "image": "debian-12"}

    def settings(self, **changes):
        return {
            "PATH": "/usr/bin:/bin", "TMPDIR": str(self.folder), "OPERATION_ID": OPERATION, "INSTANCE_NAME": "dev-api-01",
            "GROUP_NAME": "eu", "SERVICE": "api", "ENVIRONMENT": "dev", "LABELS": LABELS, "PROVIDER_CONFIG": self.config,
            "CANDIDATE": {"type": "cx22", "location": "nbg1"}, "HETZNER_API_TOKEN": TOKEN, "HCLOUD_ENDPOINT": self.api.endpoint,
            **changes,
        }

    def run_script(self, script, name="dev-api-01", **changes):
        ended = running.run("hetzner", script, self.settings(**changes), name)
        self.assertNotIn(TOKEN, ended.stdout + ended.stderr)
        self.assertNotIn("root-password-canary", ended.stdout + ended.stderr)
        return ended

    def expect(self, code, script, status=None, error=None, **changes):
        ended = self.run_script(script, **changes)
        self.assertEqual(ended.code, code, ended)
        if status:
            self.assertEqual(ended.status, status, ended)
        if error:
            self.assertEqual(ended.error, error, ended)
        return ended

    def asked(self, method, path="/servers"):
        return [request for request in self.api.requests if request["method"] == method and request["path"].startswith(path)]

    def server(self):
        [server] = self.api.servers.values()
        return server

    def make(self, operation=OPERATION, name="dev-api-01", **fields):
        """A server that is there and runs, without any script."""
        labels = {**LABELS, "operation": operation} if operation else {}
        with self.api.lock:
            self.api.act("POST", "/servers", {}, {"name": name, "server_type": "cx22", "image": "debian-12", "labels": labels})
            server = max(self.api.servers.values(), key=lambda server: server["id"])
            self.api.actions.clear()
            server.update({"status": "running", **fields})
        return server

    def file(self, content):
        path = self.folder / "cloud-init.yaml"
        path.write_text(content)
        return str(path)


class Creating(HetznerTest):
    def test_the_request_says_what_the_group_wants_and_the_answer_where_the_server_is(self):
        self.config |= {"sshKeys": ["ops $(id) \"x\"", 7], "networks": [41], "firewalls": [42], "enableIPv6": False,
                        "labels": {"team": "voice", "operation": "forged"}, "image": "ubuntu-24.04"}
        user_data = "#cloud-config\n# $(touch /canary) `x` \\n \"q\" 'é'\n"
        ended = self.expect(0, "scaleUp", "ready", CLOUD_INIT_FILE=self.file(user_data))
        [request] = self.asked("POST")
        self.assertEqual(request["body"], {
            "name": "dev-api-01", "server_type": "cx22", "location": "nbg1", "image": "ubuntu-24.04",
            "labels": {**LABELS, "team": "voice"}, "start_after_create": True, "ssh_keys": ["ops $(id) \"x\"", 7],
            "networks": [41], "firewalls": [{"firewall": 42}], "public_net": {"enable_ipv4": True, "enable_ipv6": False},
            "user_data": user_data})
        server = self.server()
        self.assertEqual(ended.answer, {
            "id": str(server["id"]), "name": "dev-api-01", "status": "ready", "ip": server["public_net"]["ipv4"]["ip"],
            "private_ip": server["private_net"][0]["ip"], "type": "cx22", "location": "nbg1", "error": None})

    def test_an_address_of_ipv6_alone_is_the_servers_own(self):
        self.config |= {"enableIPv4": False}
        ended = self.expect(0, "scaleUp", "ready")
        self.assertEqual(ended.answer["ip"], self.server()["public_net"]["ipv6"]["ip"].removesuffix("/64") + "1")

    def test_a_second_call_adopts_and_buys_nothing(self):
        first = self.expect(0, "scaleUp", "ready")
        second = self.expect(0, "scaleUp", "ready")
        self.assertEqual(first.answer, second.answer)
        self.assertEqual(len(self.asked("POST")), 1)

    def test_two_calls_at_once_make_one_server(self):
        self.api.fault("POST", "/servers", times=2, delay=0.3)
        both = [running.start("hetzner", "scaleUp", self.settings()) for _ in range(2)]
        answers = [running.finish(process, "dev-api-01") for process in both]
        self.assertEqual([ended.code for ended in answers], [0, 0], answers)
        self.assertEqual(answers[0].answer["id"], answers[1].answer["id"])
        self.assertEqual(len(self.api.servers), 1)

    def test_a_name_taken_between_look_and_request_is_told_by_its_label(self):
        for operation, code in [(OPERATION, 0), (OTHER, 20), (None, 20)]:
            with self.subTest(operation=operation):
                self.api.servers.clear()
                before = self.make(operation)
                self.api.fault("GET", "/servers", body='{"servers": []}')
                posts = len(self.asked("POST"))
                ended = self.run_script("scaleUp")
                self.assertEqual(ended.code, code, ended)
                self.assertEqual(len(self.asked("POST")), posts + 1)
                self.assertEqual(self.server(), before)
                if code:
                    self.assertEqual((ended.error, ended.answer["id"]), ("not_ours", None))

    def test_a_lost_answer_leads_to_the_server_and_not_to_another(self):
        for fault in [{"status": 504, "code": "timeout"}, {"status": 500}, {"status": 503, "code": "unavailable"},
                      {"drop": True}, {"body": "<html>"}, {"body": "{}"}]:
            with self.subTest(fault=fault):
                self.api.servers.clear()
                self.api.fault("POST", "/servers", after=True, **fault)
                ended = self.expect(0, "scaleUp", "ready")
                self.assertEqual(ended.answer["id"], str(self.server()["id"]))

    def test_an_outcome_that_cannot_be_found_out_is_none_of_the_agreed_exits(self):
        self.api.fault("POST", "/servers", status=504, code="timeout")
        self.expect(1, "scaleUp", "failed", "timeout")
        self.assertEqual((len(self.asked("POST")), len(self.api.servers)), (1, 0))
        # The server was made, but nobody answers any more.
        self.api.fault("GET", "/servers", body='{"servers": []}')
        self.api.fault("POST", "/servers", after=True, drop=True)
        self.api.fault("GET", "/servers", times=99, status=503, code="unavailable")
        self.expect(1, "scaleUp", "failed")
        self.assertEqual(len(self.api.servers), 1)

    def test_a_script_that_is_killed_leaves_what_the_next_one_adopts(self):
        self.api.fault("POST", "/servers", after=True, delay=5)
        process = running.start("hetzner", "scaleUp", self.settings())
        until = time.monotonic() + running.PATIENCE_S
        while not self.api.servers and time.monotonic() < until:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=running.PATIENCE_S)
        ended = self.expect(0, "scaleUp", "ready")
        self.assertEqual(ended.answer["id"], str(self.server()["id"]))

    def test_a_half_made_server_goes_and_the_exit_is_the_actions(self):
        for command, code, exit_code in [("create_server", "server_error", 10), ("start_server", "resource_unavailable", 11),
                                         ("start_server", "resource_limit_exceeded", 12), ("attach_to_network", "ip_not_available", 10)]:
            with self.subTest(command=command, code=code):
                self.api.failing_actions = {command: code}
                self.expect(exit_code, "scaleUp", "failed", code, PROVIDER_CONFIG={**self.config, "networks": [4]})
                self.assertEqual(self.api.servers, {})

    def test_a_half_made_server_that_cannot_be_deleted_is_named(self):
        self.api.failing_actions = {"start_server": "server_error"}
        self.api.fault("DELETE", "/servers/.*", times=99, status=423, code="locked")
        ended = self.expect(0, "scaleUp", "failed", "server_error")
        self.assertEqual(ended.answer["id"], str(self.server()["id"]))
        # Adopting it finds out the same; then the deletion works.
        self.api.faults.clear()
        self.expect(10, "scaleUp", "failed", "server_error")
        self.assertEqual(self.api.servers, {})

    def test_a_server_that_has_long_been_running_is_not_taken_for_half_made(self):
        for created, code, left in [("2026-01-30T23:55:00+00:00", 0, 1), (None, 10, 0)]:
            server = self.make()
            self.api.failing_actions = {"attach_to_network": "ip_not_available"}
            self.api.start("attach_to_network", server)
            server["created"] = created or server["created"]
            time.sleep(self.api.action_s)
            self.expect(code, "scaleUp")
            self.assertEqual(len(self.api.servers), left)
            self.api.servers.clear()

    def test_trouble_after_the_creation_never_says_that_nothing_was_made(self):
        for fault in [{"status": 503, "code": "unavailable"}, {"status": 401, "code": "unauthorized"},
                      {"status": 429, "code": "rate_limit_exceeded"}, {"drop": True}, {"body": "[]"}]:
            with self.subTest(fault=fault):
                self.api.servers.clear()
                self.api.faults.clear()
                self.api.fault("GET", "/actions.*", times=99, **fault)
                ended = self.expect(0, "scaleUp", "creating")
                self.assertEqual(ended.answer["id"], str(self.server()["id"]))

    def test_a_slow_creation_is_on_its_way(self):
        self.api.action_s = 600
        self.config |= {"waitSeconds": 0}
        self.expect(0, "scaleUp", "creating")
        self.expect(0, "scaleUp", "creating")
        self.expect(0, "scalingStatus", "creating")
        self.assertEqual(len(self.api.servers), 1)


class Refusals(HetznerTest):
    def test_errors_of_the_api_become_the_agreed_exits(self):
        for status, code, exit_code in [
            (412, "resource_unavailable", 11), (422, "placement_error", 11), (403, "resource_limit_exceeded", 12),
            (429, "rate_limit_exceeded", 13), (401, "unauthorized", 20), (403, "forbidden", 20), (403, "token_readonly", 20),
            (422, "invalid_input", 20), (400, "json_error", 20), (404, "not_found", 20), (423, "locked", 10),
            (409, "conflict", 10), (403, "maintenance", 10), (422, "service_error", 10),
        ]:
            with self.subTest(code=code):
                self.api.faults.clear()
                self.api.fault("POST", "/servers", times=99, status=status, code=code, message=f"told {TOKEN}")
                self.expect(exit_code, "scaleUp", "failed", code)
                self.assertEqual(self.api.servers, {})

    def test_stock_quota_and_token_as_the_api_itself_tells_them(self):
        self.api.out_of_stock = {("cx22", "nbg1")}
        self.expect(11, "scaleUp")
        self.expect(0, "scaleUp", "ready", CANDIDATE={"type": "cx22", "location": "fsn1"})
        self.api.quota = 1
        self.expect(12, "scaleUp", name="dev-api-02", INSTANCE_NAME="dev-api-02", CANDIDATE={"type": "cx32", "location": "fsn1"})
        self.api.readonly = True
        self.expect(20, "scaleDown", error="token_readonly")
        self.expect(20, "scalingStatus", error="unauthorized", HETZNER_API_TOKEN="another")
        self.assertEqual(len(self.api.servers), 1)

    def test_what_passes_is_tried_again(self):
        self.api.fault("POST", "/servers", times=2, status=409, code="conflict")
        self.api.fault("GET", "/servers", times=2, status=502, code="bad_gateway")
        self.api.fault("GET", "/actions", times=1, status=503, code="unavailable")
        self.expect(0, "scaleUp", "ready")
        self.api.fault("DELETE", "/servers/.*", times=3, status=423, code="locked")
        self.expect(0, "scaleDown", "absent")
        self.assertEqual((len(self.asked("POST")), len(self.asked("DELETE"))), (3, 4))

    def test_a_rate_limit_says_when_it_is_over(self):
        self.api.rate_left, self.api.rate_reset_s = 0, 77
        for script in ["scaleUp", "scalingStatus", "scaleDown", "routeIn"]:
            ended = self.expect(13, script, error="rate_limit_exceeded")
            self.assertIn(ended.answer["error"]["retry_after_s"], range(60, 79))
        self.api.rate_left = 100
        self.api.fault("GET", "/servers", status=429, code="rate_limit_exceeded", headers={"Retry-After": "9"})
        self.assertEqual(self.expect(13, "scalingStatus").answer["error"]["retry_after_s"], 9)

    def test_the_last_tenth_of_the_limit_is_kept_for_deletions(self):
        self.api.rate_left = 359
        ended = self.expect(13, "scaleUp", error="rate_limit_low")
        self.assertIn(ended.answer["error"]["retry_after_s"], range(1, 10))
        self.assertEqual(self.asked("POST"), [])
        self.make()
        self.expect(0, "scaleDown", "absent")

    def test_user_data_up_to_the_limit_and_no_further(self):
        self.expect(20, "scaleUp", error="user_data_too_large", CLOUD_INIT_FILE=self.file("x" * 32769))
        self.assertEqual(self.api.requests, [])
        self.expect(0, "scaleUp", "ready", CLOUD_INIT_FILE=self.file("x" * 32768))
        self.expect(20, "scaleUp", error="bad_input", CLOUD_INIT_FILE=str(self.folder / "missing"))

    def test_an_api_that_cannot_be_reached_is_tried_again_later(self):
        self.expect(10, "scaleUp", error="unreachable", HCLOUD_ENDPOINT="http://127.0.0.1:1/v1")
        self.expect(10, "scaleDown", error="unreachable", HCLOUD_ENDPOINT="http://127.0.0.1:1")

    def test_the_proxy_of_the_environment_is_used_and_its_exceptions_are(self):
        proxy = self.api.endpoint.removesuffix("/v1")
        there = {"HCLOUD_ENDPOINT": "http://api.example.invalid", "HTTP_PROXY": proxy}
        self.expect(14, "scalingStatus", **there)
        self.assertEqual(self.api.requests[-1]["raw"], "http://api.example.invalid/v1/servers?name=dev-api-01")
        self.expect(10, "scalingStatus", error="unreachable", NO_PROXY=".example.invalid", **there)


class Hostile(HetznerTest):
    def test_hostile_values_run_nothing_and_are_named(self):
        canary = self.folder / "canary"
        code = f"x[$(touch {canary})]"
        for changes in [
            {"INSTANCE_NAME": code}, {"INSTANCE_NAME": ""}, {"INSTANCE_NAME": "a" * 64}, {"INSTANCE_NAME": "dev\napi"},
            {"PROVIDER_ID": code}, {"PROVIDER_ID": "7/actions"}, {"LABELS": code}, {"LABELS": []}, {"LABELS": {"operation": code}},
            {"LABELS": {**LABELS, code: "x"}}, {"LABELS": {**LABELS, "role": "a:b"}}, {"LABELS": {"role": "api"}}, {"LABELS": None},
            {"PROVIDER_CONFIG": code}, {"PROVIDER_CONFIG": {"pollMs": code}}, {"PROVIDER_CONFIG": {"waitSeconds": -1}},
            {"PROVIDER_CONFIG": {"image": code}}, {"PROVIDER_CONFIG": {"networks": [code]}}, {"PROVIDER_CONFIG": {"labels": {"a": code}}},
            {"PROVIDER_CONFIG": {"firewalls": "7"}}, {"PROVIDER_CONFIG": {"enableIPv4": "no"}}, {"CANDIDATE": {"type": code}},
            {"CANDIDATE": {"location": "x"}}, {"CANDIDATE": code}, {"CANDIDATE": {"type": "cx22", "location": "a b"}},
            {"PROVIDER_CONFIG": {"loadBalancerLabel": "operation=x"}}, {"PROVIDER_CONFIG": {"loadBalancerLabel": code}},
            {"HCLOUD_ENDPOINT": "file:///etc/passwd"}, {"HCLOUD_ENDPOINT": "http://u:p@127.0.0.1/v1"}, {"HCLOUD_ENDPOINT": code},
            {"HETZNER_API_TOKEN": 'x"\nurl = "http://127.0.0.1:1'}, {"HETZNER_API_TOKEN": None},
        ]:
            with self.subTest(changes=changes):
                ended = self.run_script("scaleUp", name=None, **changes)
                self.assertEqual(ended.code, 20, ended)
                self.assertIn(ended.error, ("bad_input", "unauthorized"))
                self.assertEqual(self.api.requests, [])
        self.assertFalse(canary.exists())

    def test_nothing_secret_stands_in_a_command_line_or_is_left_behind(self):
        self.api.fault("POST", "/servers", delay=0.5)
        self.api.fault("GET", "/servers", delay=0.3)
        file = self.file("#cloud-config\n# datacanary\n")
        with CommandLines() as lines:
            self.expect(0, "scaleUp", "ready", CLOUD_INIT_FILE=file)
        self.assertTrue(lines.having("/v1/servers"), "curl was not seen: this test would see nothing")
        self.assertEqual(lines.having(TOKEN) + lines.having("datacanary"), [])
        self.assertEqual([path.name for path in self.folder.iterdir()], ["cloud-init.yaml"])
        self.assertEqual({request["authorization"] for request in self.api.requests}, {f"Bearer {TOKEN}"})

    def test_a_configuration_of_curl_in_the_home_folder_does_nothing(self):
        (self.folder / ".curlrc").write_text('url = "http://127.0.0.1:1/"\noutput = "leak"\n')
        self.expect(14, "scalingStatus", HOME=str(self.folder))


class Looking(HetznerTest):
    def test_each_state_of_the_api_has_its_word(self):
        self.expect(14, "scalingStatus", "absent", "not_found")
        server = self.make()
        for state, word in [("initializing", "creating"), ("starting", "creating"), ("off", "creating"), ("running", "ready"),
                            ("unknown", "creating"), ("migrating", "creating"), ("deleting", "deleting")]:
            server["status"], server["_gone"], server["_runs"] = state, float("inf"), float("inf")
            self.assertEqual(self.expect(0, "scalingStatus", word).answer["id"], str(server["id"]), state)
        server.update({"status": "off", "created": "2026-01-30T23:55:00+00:00"})
        self.expect(0, "scalingStatus", "failed", "off")

    def test_a_creation_that_failed_is_seen_later_too(self):
        self.api.failing_actions = {"start_server": "server_error"}
        self.config |= {"waitSeconds": 0}
        self.make()
        self.api.start("start_server", self.server())
        self.server()["status"] = "off"
        time.sleep(self.api.action_s)
        self.expect(0, "scalingStatus", "failed", "server_error")

    def test_another_operations_server_is_never_reported_as_ours(self):
        for operation in [OTHER, None]:
            self.api.servers.clear()
            server = self.make(operation)
            self.expect(20, "scalingStatus", error="not_ours")
            self.expect(20, "scalingStatus", error="not_ours", PROVIDER_ID=str(server["id"]))

    def test_a_broken_answer_never_means_absent(self):
        server = self.make()
        for body in ["", "{}", "[]", "null", "<html>", '{"servers": null}', '{"servers": {}}', '{"servers": [{"name": "dev-api-01"}]}']:
            for script in ["scalingStatus", "scaleDown", "routeOut"]:
                with self.subTest(body=body, script=script):
                    self.api.faults.clear()
                    self.api.fault("GET", "/servers", times=99, body=body)
                    self.expect(10, script)
        self.assertEqual(self.asked("DELETE"), [])
        self.assertEqual(self.api.servers, {server["id"]: server})


class Deleting(HetznerTest):
    def test_gone_once_and_gone_again(self):
        server = self.make()
        self.expect(0, "scaleDown", "absent", PROVIDER_ID=str(server["id"]))
        self.expect(0, "scaleDown", "absent", PROVIDER_ID=str(server["id"]))
        self.expect(0, "scaleDown", "absent")
        self.assertEqual((self.api.servers, len(self.asked("DELETE"))), ({}, 1))

    def test_a_server_of_another_operation_or_of_nobody_stays(self):
        for operation in [OTHER, None]:
            self.api.servers.clear()
            server = self.make(operation)
            self.expect(20, "scaleDown", error="not_ours")
            self.expect(20, "scaleDown", error="not_ours", PROVIDER_ID=str(server["id"]))
            self.assertEqual(self.asked("DELETE"), [])
            # Ours is gone, and its name was given to another.
            self.expect(0, "scaleDown", "absent", PROVIDER_ID="77")
            self.assertEqual(self.api.servers, {server["id"]: server})

    def test_a_server_that_takes_its_time_is_on_its_way_out(self):
        self.make()
        self.api.delete_s = 600
        self.config |= {"waitSeconds": 0}
        self.expect(0, "scaleDown", "deleting")
        self.expect(0, "scalingStatus", "deleting")
        self.expect(10, "scaleUp", "deleting", "being_deleted")

    def test_protection_is_for_a_person_to_lift(self):
        self.make(protection={"delete": True, "rebuild": False})
        self.expect(20, "scaleDown", error="protected")
        self.assertEqual(len(self.api.servers), 1)

    def test_a_lock_that_stays_is_told_after_a_bounded_number_of_tries(self):
        self.make(locked=True)
        self.expect(10, "scaleDown", error="locked")
        self.assertEqual(len(self.asked("DELETE")), 5)

    def test_a_lost_answer_is_looked_after(self):
        for fault in [{"status": 504, "code": "timeout"}, {"drop": True}]:
            self.make()
            self.api.fault("DELETE", "/servers/.*", after=True, **fault)
            self.expect(0, "scaleDown", "absent")


class Listing(HetznerTest):
    OURS = {"managed-by": "voiceai-scaler", "environment": "dev"}

    def list(self, **changes):
        return running.run_list("hetzner", self.settings(**{"LABELS": self.OURS, **changes}))

    def test_every_server_of_ours_and_no_other_over_all_pages(self):
        with self.api.lock:
            for number in range(103):
                labels = {**LABELS, "operation": f"op-{number}", "group": f"g{number % 7}"}
                if number == 50:
                    labels["managed-by"] = "somebody"
                elif number == 51:
                    labels["environment"] = "prod"
                elif number == 52:
                    labels = {}
                self.api.act("POST", "/servers", {}, {"name": f"s-{number}", "server_type": "cx22", "image": "debian-12", "labels": labels})
        # A group's own labels do not narrow the list.
        code, servers = self.list(PROVIDER_CONFIG={**self.config, "labels": {"team": "x"}})
        self.assertEqual(code, 0)
        self.assertEqual({server["name"] for server in servers.values()}, {f"s-{number}" for number in range(103) if number not in (50, 51, 52)})
        self.assertEqual(next(iter(servers.values()))["labels"]["operation"], "op-0")
        self.assertEqual(len(self.asked("GET")), 2)

    def test_none_is_a_whole_list_too(self):
        self.assertEqual(self.list(), (0, {}))

    def test_what_is_not_whole_is_no_list(self):
        page = {"page": 1, "per_page": 50, "previous_page": None, "next_page": None, "last_page": 1, "total_entries": 1}
        one = {"id": 7, "name": "s", "status": "running", "labels": {}}
        for body in [{}, {"servers": []}, {"servers": None, "meta": {"pagination": page}}, {"servers": [], "meta": {"pagination": page}},
                     {"servers": [{"id": 7}], "meta": {"pagination": page}}, {"servers": [one, one], "meta": {"pagination": {**page, "total_entries": 2}}},
                     {"servers": [one], "meta": {"pagination": {**page, "total_entries": 60}}}, {"servers": [one], "meta": {"pagination": {**page, "next_page": 1}}}]:
            with self.subTest(body=body):
                self.api.faults.clear()
                self.api.fault("GET", "/servers", body=json.dumps(body))
                code, error = self.list()
                self.assertEqual(code, 10, error)
        self.api.faults.clear()
        self.api.fault("GET", "/servers", times=99, status=503)
        self.assertEqual(self.list(PROVIDER_CONFIG={**self.config, "waitSeconds": 0})[0], 10)
        self.api.faults.clear()
        self.assertEqual(self.list(LABELS={"managed-by": "voiceai-scaler"}), (20, "bad_input"))


class Routing(HetznerTest):
    def test_the_label_comes_and_goes_and_all_others_stay(self):
        server = self.make(labels={**LABELS, "by-hand": "yes"})
        self.expect(0, "routeIn", "ready", PROVIDER_ID=str(server["id"]))
        self.assertEqual(server["labels"], {**LABELS, "by-hand": "yes", "in-service": "true"})
        self.expect(0, "routeIn", "ready")
        self.assertEqual(len(self.asked("PUT")), 1)
        self.expect(0, "routeOut", "ready")
        self.assertEqual(server["labels"], {**LABELS, "by-hand": "yes"})
        self.expect(0, "routeOut", "ready")
        self.assertEqual(len(self.asked("PUT")), 2)

    def test_the_groups_own_label(self):
        self.config |= {"loadBalancerLabel": "lb=web", "labels": {"lb": "web", "team": "x"}}
        self.expect(0, "scaleUp", "ready")
        self.assertNotIn("lb", self.server()["labels"], "it would be in routing before it is healthy")
        self.expect(0, "routeIn", "ready", SERVICE="voice")
        self.assertEqual(self.server()["labels"], {**LABELS, "team": "x", "lb": "web"})

    def test_a_voice_server_needs_no_label_but_is_still_looked_at(self):
        self.make()
        self.expect(0, "routeIn", "ready", SERVICE="voice")
        self.assertEqual(self.asked("PUT"), [])

    def test_absent_and_not_ours(self):
        for script in ["routeIn", "routeOut"]:
            for service in ["api", "voice"]:
                self.api.servers.clear()
                self.expect(14, script, "absent", "not_found", SERVICE=service)
                server = self.make(OTHER)
                self.expect(20, script, error="not_ours", SERVICE=service)
                self.assertEqual(server["labels"], {**LABELS, "operation": OTHER})

    def test_labels_that_something_else_overwrites_are_written_again(self):
        server = self.make()
        written = threading.Event()
        original = self.api.act

        def act(method, path, query, body):
            answer = original(method, path, query, body)
            if method == "PUT" and not written.is_set():
                written.set()
                server["labels"] = {**LABELS, "meanwhile": "1"}
            return answer

        self.api.act = act
        self.expect(0, "routeIn", "ready")
        self.assertEqual(server["labels"], {**LABELS, "meanwhile": "1", "in-service": "true"})


if __name__ == "__main__":
    unittest.main()
