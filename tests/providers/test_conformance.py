"""The double of the Hetzner Cloud API, used by the official Python client: what the client understands, the API would say."""

import threading
import time
import unittest
import urllib.request

from hcloud import APIException, Client
from hcloud.actions import ActionFailedException
from hcloud.images import Image
from hcloud.locations import Location
from hcloud.server_types import ServerType
from hetzner_double import HetznerDouble


class Conformance(unittest.TestCase):
    def setUp(self):
        self.api = self.enterContext(HetznerDouble())
        self.client = Client(self.api.token, api_endpoint=self.api.endpoint, poll_interval=0.02)

    def create(self, name="dev-api-01", labels=None, location="fsn1", **more):
        return self.client.servers.create(name=name, server_type=ServerType(name="cx22"), image=Image(name="debian-12"),
                                          location=Location(name=location), labels=labels or {"role": "api"}, **more)

    def fails(self, code, function, *arguments, **more):
        with self.assertRaises(APIException) as caught:
            function(*arguments, **more)
        self.assertEqual(caught.exception.code, code)

    def test_a_servers_life(self):
        made = self.create(labels={"role": "api", "environment": "dev"})
        made.action.wait_until_finished()
        for action in made.next_actions:
            action.wait_until_finished()
        server = self.client.servers.get_by_name("dev-api-01")
        self.assertEqual(server.id, made.server.id)
        for _ in range(200):
            server.reload()
            if server.status == "running":
                break
        self.assertEqual(server.status, "running")
        self.assertEqual((server.server_type.name, server.location.name), ("cx22", "fsn1"))
        self.assertTrue(server.public_net.ipv4.ip and server.public_net.ipv6.ip)
        self.assertEqual(len(self.client.servers.get_actions_list(server)), 2)
        server.update(labels={"role": "api", "in-service": "true"})
        self.assertEqual(self.client.servers.get_by_id(server.id).labels, {"role": "api", "in-service": "true"}, "replaced as a whole")
        server.delete().wait_until_finished()
        self.fails("not_found", self.client.servers.get_by_id, server.id)
        self.fails("not_found", server.delete)
        self.assertIsNone(self.client.servers.get_by_name("dev-api-01"))

    def test_names_are_unique(self):
        self.create()
        self.fails("uniqueness_error", self.create)

    def test_selectors_and_pages(self):
        for number in range(30):
            self.create(name=f"dev-{number}", labels={"n": str(number), "odd": str(number % 2), "first": "x"} if number < 29 else {"n": "29"})
        def chosen(text):
            return {server.labels["n"] for server in self.client.servers.get_all(label_selector=text)}
        self.assertEqual(len(chosen("n")), 30)
        self.assertEqual(chosen("n==3"), {"3"})
        self.assertEqual(chosen("n=3"), {"3"})
        self.assertEqual(chosen("n in (3, 4),odd!=1"), {"4"})
        self.assertEqual(chosen("!first"), {"29"})
        self.assertEqual(len(chosen("n notin (1,2)")), 28)
        self.assertEqual(len(self.client.servers.get_list(per_page=50).servers), 30)
        self.assertEqual(len(self.client.servers.get_list(page=2, per_page=25).servers), 5)

    def test_what_the_api_refuses(self):
        self.api.out_of_stock = {("cx22", "hel1")}
        self.fails("resource_unavailable", self.create, location="hel1")
        self.fails("invalid_input", self.create, user_data="x" * 32769)
        self.fails("invalid_input", self.create, labels={"group": "a:b"})
        self.fails("invalid_input", self.create, name="a b")
        self.api.quota = 0
        self.fails("resource_limit_exceeded", self.create)
        self.fails("unauthorized", Client("wrong", api_endpoint=self.api.endpoint).servers.get_by_id, 1)

    def test_an_action_that_fails_and_a_lock(self):
        self.api.failing_actions = {"start_server": "server_error"}
        made = self.create()
        with self.assertRaises(ActionFailedException):
            made.next_actions[0].wait_until_finished()
        self.api.failing_actions = {}
        # The client repeats what is locked.
        self.api.fault("DELETE", "/servers/.*", status=409, code="conflict")
        made.server.delete()

    def test_the_rate_limit_counts_down(self):
        self.api.rate_left = 3
        left = []
        for _ in range(2):
            request = urllib.request.Request(f"{self.api.endpoint}/servers", headers={"Authorization": f"Bearer {self.api.token}"})
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as reply:
                left.append(reply.headers["RateLimit-Remaining"])
        self.assertEqual(left, ["2", "1"])
        # The client repeats such a request after a pause of its own choice; here it need not.
        patient = Client(self.api.token, api_endpoint=self.api.endpoint, poll_max_retries=0)
        started = time.monotonic()
        self.api.rate_left = 1
        threading.Timer(0.2, lambda: setattr(self.api, "rate_left", 100)).start()
        self.assertEqual(patient.servers.get_all(), [])
        self.assertGreater(time.monotonic() - started, 0.2, "it was told to wait, and did")


if __name__ == "__main__":
    unittest.main()
