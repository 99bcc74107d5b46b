"""The example of an own provider keeps the contract that it is an example of."""

import pathlib
import tempfile
import unittest

import running

HOSTS = [{"id": "h1", "ip": "10.0.0.11", "type": "big", "location": "cellar"},
         {"id": "h2", "ip": "10.0.0.12", "privateIp": "10.1.0.12", "type": "big", "location": "attic"}]


class Custom(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

    def settings(self, name="dev-voice-01", operation="op-1", **changes):
        return {"PATH": "/usr/bin:/bin", "INSTANCE_NAME": name, "LABELS": {"operation": operation},
                "PROVIDER_CONFIG": {"stateDir": str(self.folder), "hosts": HOSTS}, "CANDIDATE": {"type": "big"}, **changes}

    def expect(self, code, script, name="dev-voice-01", **more):
        ended = running.run("custom-example", script, self.settings(name=name, **more), name)
        self.assertEqual(ended.code, code, ended)
        return ended.answer

    def test_hosts_are_given_adopted_and_taken_back(self):
        self.expect(14, "scalingStatus")
        first = self.expect(0, "scaleUp")
        self.assertEqual((first["id"], first["ip"], first["status"]), ("h1", "10.0.0.11", "ready"))
        self.assertEqual(self.expect(0, "scaleUp"), first)
        self.assertEqual(self.expect(0, "scalingStatus"), first)
        for script in ["scaleUp", "scalingStatus", "scaleDown"]:
            self.expect(20, script, operation="op-2")
        self.assertEqual(self.expect(0, "scaleUp", name="dev-voice-02", operation="op-2")["private_ip"], "10.1.0.12")
        self.expect(11, "scaleUp", name="dev-voice-03", operation="op-3")
        self.assertEqual(self.expect(0, "scaleDown")["status"], "absent")
        self.assertEqual(self.expect(0, "scaleDown")["status"], "absent")
        self.expect(11, "scaleUp", name="dev-voice-03", operation="op-3", CANDIDATE={"location": "attic"})
        self.assertEqual(self.expect(0, "scaleUp", name="dev-voice-03", operation="op-3")["id"], "h1")

    def test_a_list_is_every_host_that_is_given_away_or_none_at_all(self):
        self.assertEqual(running.run_list("custom-example", self.settings()), (0, {}))
        self.expect(0, "scaleUp", LABELS={"operation": "op-1", "environment": "dev"})
        code, servers = running.run_list("custom-example", self.settings(LABELS={"environment": "dev"}))
        self.assertEqual((code, servers), (0, {"h1": {"id": "h1", "name": "dev-voice-01", "status": "ready",
                                                     "labels": {"operation": "op-1", "environment": "dev"}}}))
        (self.folder / "h2.json").write_text("{")
        self.assertEqual(running.run_list("custom-example", self.settings()), (10, "bad_state"))

    def test_two_at_once_get_two_hosts(self):
        names = ["dev-voice-01", "dev-voice-02"]
        both = [running.start("custom-example", "scaleUp", self.settings(name=name, operation=name)) for name in names]
        given = [running.finish(process, name) for process, name in zip(both, names)]
        self.assertEqual({ended.answer["id"] for ended in given}, {"h1", "h2"}, given)

    def test_a_broken_record_is_never_an_absent_server(self):
        self.expect(0, "scaleUp")
        (self.folder / "h1.json").write_text("{")
        for script in ["scaleUp", "scalingStatus", "scaleDown"]:
            self.expect(10, script)
        self.assertTrue((self.folder / "h1.json").exists())

    def test_hostile_values_run_nothing(self):
        code = f"x[$(touch {self.folder}/canary)]"
        config = self.settings()["PROVIDER_CONFIG"]
        for changes in [{"INSTANCE_NAME": code}, {"LABELS": code}, {"LABELS": {}}, {"LABELS": {"operation": code}}, {"CANDIDATE": code},
                        {"PROVIDER_CONFIG": {**config, "hosts": [{"id": "../x"}]}}, {"PROVIDER_CONFIG": {**config, "hosts": [{"id": "a", "ip": code}]}},
                        {"PROVIDER_CONFIG": {**config, "stateDir": "x"}}, {"PROVIDER_CONFIG": {**config, "hosts": code}}]:
            with self.subTest(changes=changes):
                ended = running.run("custom-example", "scaleUp", {**self.settings(), **changes}, None)
                self.assertEqual((ended.code, ended.error), (20, "bad_input"), ended)
        self.assertEqual(list(self.folder.iterdir()), [])


if __name__ == "__main__":
    unittest.main()
