"""A double of the Hetzner Cloud API, as far as the scripts of the provider `hetzner` and a load balancer's label need it.

It keeps servers, actions and labels as the API does: names unique in the project, actions that run for a while, labels
replaced as a whole, user data of at most 32 KiB, a rate limit that counts down. test_conformance.py holds it to the official
Python client. What goes wrong is scripted with `faults`, `out_of_stock`, `failing_actions` and the other fields below.

In a test:   with HetznerDouble() as api: ... api.endpoint ... api.servers ... api.fault("POST", "/servers", after=True, status=504)
By hand:     hetzner_double.py [PORT]      prints the endpoint; scripted by POST /double {"out_of_stock": [["cx22", "fsn1"]]}
"""

import datetime
import itertools
import json
import re
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

USER_DATA_MAX = 32 * 1024
LABEL_VALUE = re.compile(r"^$|^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$")
LABEL_KEY = re.compile(r"^([A-Za-z0-9.-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$")
HOST_NAME = re.compile(r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,61}[A-Za-z0-9])?$")
CREATE_KEYS = {
    "name", "server_type", "image", "location", "datacenter", "ssh_keys", "user_data", "labels", "networks", "firewalls",
    "volumes", "automount", "placement_group", "public_net", "start_after_create",
}


class ApiError(Exception):
    def __init__(self, status, code, message="", headers=None):
        super().__init__(code)
        self.status, self.code, self.message, self.headers = status, code, message or code, headers or {}


def invalid(message):
    return ApiError(422, "invalid_input", message)


def selector(text):
    """A label selector as a predicate: k==v, k=v, k!=v, k, !k, k in (a,b), k notin (a,b), joined by commas."""
    tests = []
    for part in re.findall(r"[^,(]+(?:\([^)]*\))?", text):
        part = part.strip()
        if found := re.fullmatch(r"(\S+)\s+(in|notin)\s*\(([^)]*)\)", part):
            key, word, values = found[1], found[2], {value.strip() for value in found[3].split(",")}
            tests.append(lambda labels, key=key, values=values, word=word: (labels.get(key) in values) == (word == "in"))
        elif found := re.fullmatch(r"([^=!\s]+)\s*(==|=|!=)\s*([^=!\s]*)", part):
            key, sign, value = found.groups()
            tests.append(lambda labels, key=key, value=value, sign=sign: (labels.get(key) == value) == (sign != "!="))
        elif found := re.fullmatch(r"(!?)\s*([^=!\s]+)", part):
            tests.append(lambda labels, key=found[2], absent=found[1]: (key in labels) != bool(absent))
        else:
            raise invalid("invalid label selector")
    return lambda labels: all(test(labels) for test in tests)


class HetznerDouble:
    def __init__(self, token="double-token", port=0):
        self.token = token
        self.lock = threading.RLock()
        self.ids = itertools.count(1001)
        self.servers = {}
        self.actions = {}
        self.requests = []
        # --- what is scripted ---
        self.faults = []
        self.out_of_stock = set()
        self.failing_actions = {}
        self.quota = None
        self.rate_limit, self.rate_left, self.rate_reset_s = 3600, 3600, 0
        self.action_s = 0.05
        self.boot_s = 0.05
        self.delete_s = 0.0
        self.readonly = False
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Head and body are written apart; waiting for acknowledgements in between would cost 40 ms a request.
            disable_nagle_algorithm = True

            def handle_any(self):
                double.handle(self)

            do_GET = do_POST = do_PUT = do_DELETE = handle_any

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def fault(self, method, path, times=1, **how):
        """The next `times` requests of this kind go wrong. `path` is a regular expression for the whole path below /v1.

        status, code, message, headers: the error that is told. after=True: only once the request has had its effect.
        drop=True: the connection ends without an answer. body: sent with status 200 in place of the answer. delay: seconds.
        """
        with self.lock:
            self.faults.append({"method": method, "path": path, "times": times, **how})

    # --- the world -----------------------------------------------------------------------------------------------------

    def settle(self):
        """Lets time pass: actions end, servers boot, deleted ones go."""
        now = time.monotonic()
        for action in self.actions.values():
            if action["status"] == "running" and now >= action["_ends"]:
                failing = action["_error"]
                action["status"] = "error" if failing else "success"
                action["progress"] = 100
                action["finished"] = stamp()
                action["error"] = {"code": failing, "message": f"{action['command']} failed"} if failing else None
                server = self.servers.get(action["resources"][0]["id"])
                if server and not failing:
                    if action["command"] == "create_server":
                        server["status"] = "off"
                    elif action["command"] == "start_server":
                        server["status"] = "starting"
                        server["_runs"] = now + self.boot_s
                    elif action["command"] == "attach_to_network":
                        server["private_net"] = [self.private(server)]
        for key, server in list(self.servers.items()):
            if server["status"] == "starting" and now >= server["_runs"]:
                server["status"] = "running"
            if server["status"] == "deleting" and now >= server["_gone"]:
                del self.servers[key]

    @staticmethod
    def private(server):
        network = server["_networks"][0]
        ip = f"10.0.{server['id'] // 250 % 250}.{server['id'] % 250 + 2}"
        return {"network": network, "ip": ip, "alias_ips": [], "mac_address": "86:00:ff:2a:7d:e1"}

    def start(self, command, server, after=0.0):
        action = {
            "id": next(self.ids), "command": command, "status": "running", "progress": 0, "started": stamp(),
            "finished": None, "resources": [{"id": server["id"], "type": "server"}], "error": None,
            "_ends": time.monotonic() + self.action_s + after, "_error": self.failing_actions.get(command),
        }
        self.actions[action["id"]] = action
        return action

    def create(self, wanted):
        if not isinstance(wanted, dict):
            raise ApiError(400, "json_error", "body is not a JSON object")
        if unknown := set(wanted) - CREATE_KEYS:
            raise invalid(f"unknown field {sorted(unknown)[0]}")
        for name in ("name", "server_type", "image"):
            if not wanted.get(name):
                raise invalid(f"invalid input in field '{name}'")
        if not HOST_NAME.match(wanted["name"]):
            raise invalid("invalid input in field 'name'")
        labels = check_labels(wanted.get("labels") or {})
        if len((wanted.get("user_data") or "").encode()) > USER_DATA_MAX:
            raise invalid("invalid input in field 'user_data': longer than 32 KiB")
        for name in ("networks", "volumes"):
            if not all(isinstance(entry, int) for entry in wanted.get(name) or []):
                raise invalid(f"invalid input in field '{name}'")
        if not all(isinstance(entry.get("firewall"), int) for entry in wanted.get("firewalls") or []):
            raise invalid("invalid input in field 'firewalls'")
        if any(server["name"] == wanted["name"] for server in self.servers.values()):
            raise ApiError(409, "uniqueness_error", "server name is already used")
        if self.quota is not None and len(self.servers) >= self.quota:
            raise ApiError(403, "resource_limit_exceeded", "server limit reached")
        location = wanted.get("location") or "fsn1"
        if (wanted["server_type"], location) in self.out_of_stock:
            raise ApiError(412, "resource_unavailable", "we are unable to provision servers for this location")
        number = next(self.ids)
        net = wanted.get("public_net") or {}
        # Named as in the API's documentation; the addresses are those set aside for examples.
        place = {"id": 1, "name": location, "description": location, "country": "DE", "city": location, "latitude": 50.4,
                 "longitude": 12.3, "network_zone": "eu-central"}
        server = {
            "id": number, "name": wanted["name"], "status": "initializing", "created": stamp(), "labels": labels,
            "public_net": {
                "ipv4": {"id": number, "ip": f"203.0.113.{number % 250 + 1}", "blocked": False,
                         "dns_ptr": f"static.{number}.example.org"} if net.get("enable_ipv4", True) else None,
                "ipv6": {"id": number + 1, "ip": f"2001:db8:{number:x}::/64", "blocked": False,
                         "dns_ptr": []} if net.get("enable_ipv6", True) else None,
                "floating_ips": [], "firewalls": [{"id": entry["firewall"], "status": "applied"}
                                                  for entry in wanted.get("firewalls") or []],
            },
            "private_net": [],
            "server_type": {"id": 1, "name": wanted["server_type"], "description": wanted["server_type"], "cores": 2,
                            "memory": 4.0, "disk": 40, "prices": [], "storage_type": "local", "cpu_type": "shared",
                            "architecture": "x86"},
            "location": place,
            "datacenter": {"id": 1, "name": f"{location}-dc1", "description": location, "location": place,
                           "server_types": {"supported": [1], "available": [1], "available_for_migration": [1]}},
            "image": {"id": 1, "type": "system", "status": "available", "name": str(wanted["image"]),
                      "description": str(wanted["image"]), "os_flavor": "debian", "os_version": "12", "disk_size": 5,
                      "labels": {}, "created": stamp(), "protection": {"delete": False}, "rapid_deploy": True,
                      "architecture": "x86"},
            "iso": None, "rescue_enabled": False, "locked": False, "backup_window": None, "outgoing_traffic": 0,
            "ingoing_traffic": 0, "included_traffic": 0, "protection": {"delete": False, "rebuild": False}, "volumes": [],
            "load_balancers": [], "primary_disk_size": 40, "placement_group": None,
            "_networks": wanted.get("networks") or [], "_user_data": wanted.get("user_data"), "_wanted": wanted,
        }
        self.servers[number] = server
        action = self.start("create_server", server)
        following = []
        if wanted.get("start_after_create", True):
            following.append(self.start("start_server", server, self.action_s))
        if server["_networks"]:
            following.append(self.start("attach_to_network", server, self.action_s))
        root_password = None if wanted.get("ssh_keys") else "root-password-canary"
        return 201, {"server": server, "action": action, "next_actions": following, "root_password": root_password}

    def find(self, text):
        server = self.servers.get(int(text))
        if not server:
            raise ApiError(404, "not_found", f"server with ID '{text}' not found")
        return server

    def act(self, method, path, query, body):
        if path == "/servers" and method == "POST":
            return self.create(body)
        if path == "/servers" and method == "GET":
            found = list(self.servers.values())
            if "name" in query:
                found = [server for server in found if server["name"] == query["name"][0]]
            if "label_selector" in query:
                matches = selector(query["label_selector"][0])
                found = [server for server in found if matches(server["labels"])]
            return 200, page("servers", found, query)
        if found := re.fullmatch(r"/servers/(\d+)", path):
            server = self.find(found[1])
            if method == "GET":
                return 200, {"server": server}
            if method == "PUT":
                if "labels" in (body or {}):
                    server["labels"] = check_labels(body["labels"])
                if name := (body or {}).get("name"):
                    if any(other["name"] == name and other is not server for other in self.servers.values()):
                        raise ApiError(409, "uniqueness_error", "server name is already used")
                    server["name"] = name
                return 200, {"server": server}
            if method == "DELETE":
                if server["protection"]["delete"]:
                    raise ApiError(423, "protected", "server is delete protected")
                if server["locked"]:
                    raise ApiError(423, "locked", "server is locked")
                action = self.start("delete_server", server)
                if not action["_error"]:
                    server["status"] = "deleting"
                    server["_gone"] = time.monotonic() + self.delete_s
                return 200, {"action": action}
        if (found := re.fullmatch(r"/servers/(\d+)/actions", path)) and method == "GET":
            number = self.find(found[1])["id"]
            actions = [action for action in self.actions.values() if action["resources"][0]["id"] == number]
            if query.get("sort") == ["id:desc"]:
                actions.sort(key=lambda action: -action["id"])
            return 200, page("actions", actions, query)
        if path == "/actions" and method == "GET":
            if "id" not in query:
                raise ApiError(410, "deprecated_api_endpoint", "listing actions without ids is no longer available")
            wanted = [int(text) for text in query["id"]]
            return 200, page("actions", [self.actions[number] for number in wanted if number in self.actions], query)
        if (found := re.fullmatch(r"/actions/(\d+)", path)) and method == "GET":
            if int(found[1]) not in self.actions:
                raise ApiError(404, "not_found", "action not found")
            return 200, {"action": self.actions[int(found[1])]}
        if path in ("/servers", "/actions") or re.fullmatch(r"/servers/\d+", path):
            raise ApiError(405, "method_not_allowed")
        raise ApiError(404, "not_found", "no such endpoint")

    # --- the wire ------------------------------------------------------------------------------------------------------

    def handle(self, handler):
        url = urlsplit(handler.path)
        length = int(handler.headers.get("Content-Length") or 0)
        raw = handler.rfile.read(length)
        if url.path == "/double":
            return self.control(handler, raw)
        path, query = url.path.removeprefix("/v1"), parse_qs(url.query)
        fault = None
        with self.lock:
            record = {"method": handler.command, "path": path, "query": query, "raw": handler.path,
                      "authorization": handler.headers.get("Authorization")}
            self.requests.append(record)
            self.settle()
            for candidate in self.faults:
                if candidate["times"] and candidate["method"] == handler.command and re.fullmatch(candidate["path"], path):
                    candidate["times"] -= 1
                    fault = candidate
                    break
            try:
                body = json.loads(raw) if raw else None
                record["body"] = body
                self.rate_left = max(0, self.rate_left - 1)
                if self.rate_left == 0:
                    raise ApiError(429, "rate_limit_exceeded", "rate limit exceeded")
                if handler.headers.get("Authorization") != f"Bearer {self.token}":
                    raise ApiError(401, "unauthorized", "unable to authenticate")
                if self.readonly and handler.command != "GET":
                    raise ApiError(403, "token_readonly", "token is only allowed to perform GET requests")
                if fault and not fault.get("after") and "status" in fault:
                    raise told(fault)
                if fault and not fault.get("after") and fault.get("drop"):
                    status, answer, headers = 0, None, {}
                else:
                    (status, answer), headers = self.act(handler.command, path, query, body), {}
                    self.settle()
                    answer = public(answer)
                    if fault and fault.get("after") and "status" in fault:
                        raise told(fault)
            except json.JSONDecodeError:
                status, answer, headers = 400, {"error": {"code": "json_error", "message": "invalid JSON"}}, {}
            except ApiError as error:
                status, headers = error.status, error.headers
                answer = {"error": {"code": error.code, "message": error.message, "details": None}}
            reset = int(time.time()) + (self.rate_reset_s or self.rate_limit - self.rate_left)
            headers = {"RateLimit-Limit": self.rate_limit, "RateLimit-Remaining": self.rate_left, "RateLimit-Reset": reset,
                       "X-Correlation-Id": f"{len(self.requests):016x}", **headers}
        if fault and "delay" in fault:
            time.sleep(fault["delay"])
        if fault and fault.get("drop"):
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return None
        content = fault["body"].encode() if fault and "body" in fault else json.dumps(answer).encode()
        return self.send(handler, status, content, headers)

    def control(self, handler, raw):
        """POST /double sets fields; `faults` are added. GET /double tells the servers and the requests so far."""
        with self.lock:
            if handler.command == "POST":
                for name, value in json.loads(raw or b"{}").items():
                    if name == "faults":
                        self.faults.extend({"times": 1, **fault} for fault in value)
                    else:
                        setattr(self, name, {tuple(pair) for pair in value} if name == "out_of_stock" else value)
            self.settle()
            told_now = {"servers": public(list(self.servers.values())), "requests": self.requests}
        self.send(handler, 200, json.dumps(told_now).encode(), {})

    @staticmethod
    def send(handler, status, content, headers):
        try:
            handler.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers, "Content-Length": len(content)}.items():
                handler.send_header(name, str(value))
            handler.end_headers()
            handler.wfile.write(content)
        except OSError:
            pass  # the caller did not wait for it


def told(fault):
    return ApiError(fault["status"], fault.get("code", "server_error"), fault.get("message", ""), fault.get("headers"))


def check_labels(labels):
    for key, value in labels.items():
        if not LABEL_KEY.match(key) or not isinstance(value, str) or not LABEL_VALUE.match(value):
            raise invalid("invalid input in field 'labels'")
    return dict(labels)


def page(name, entries, query):
    number, size = int(query.get("page", ["1"])[0]), min(int(query.get("per_page", ["25"])[0]), 50)
    last = max(1, -(-len(entries) // size))
    meta = {"page": number, "per_page": size, "previous_page": number - 1 if number > 1 else None,
            "next_page": number + 1 if number < last else None, "last_page": last, "total_entries": len(entries)}
    return {name: entries[(number - 1) * size:number * size], "meta": {"pagination": meta}}


def public(value):
    """A copy without our own fields, which begin with `_`."""
    if isinstance(value, dict):
        return {key: public(entry) for key, entry in value.items() if not key.startswith("_")}
    return [public(entry) for entry in value] if isinstance(value, list) else value


def stamp():
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


if __name__ == "__main__":
    with HetznerDouble(port=int(sys.argv[1]) if len(sys.argv) > 1 else 0) as running:
        print(running.endpoint, flush=True)
        threading.Event().wait()
