"""What the filters of the role make of a fleet, and what they refuse."""

import pathlib
import sys
import unittest

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "ansible/roles/cygnet/filter_plugins"))

from ansible.errors import AnsibleFilterError  # noqa: E402
import cygnet_answers as answers  # noqa: E402
import cygnet_fleet as fleet  # noqa: E402

KEY = "pL7v0y2QxNf8sKd3RwZtB5"


def inventory(shared=None, **hosts):
    """Variables of three hosts; more for all, more for some."""
    result = {}
    for number, host in enumerate(("berlin", "hq", "oslo"), start=1):
        result[host] = {
            "cygnet_address": f"192.0.2.{number}",
            "cygnet_networks": [f"10.{number}.0.0/16"],
            "cygnet_topology": "mesh",
            "cygnet_psks": {name: KEY for name in ("berlin-hq", "hq-oslo", "berlin-oslo", "hq-supplier")},
            **(shared or {}),
            **hosts.get(host, {}),
        }
    return result


def config(host, use="all", shared=None, **hosts):
    return fleet.cygnet_config(inventory(shared, **hosts), host, ["berlin", "hq", "oslo"], use)


def tunnels(host, **more):
    return {tunnel["name"]: tunnel for tunnel in config(host, **more)["tunnels"]}


HUB = {"cygnet_topology": "hub", "cygnet_hub": "hq"}


class Fleet(unittest.TestCase):
    def refused(self, pattern, host="hq", **more):
        with self.assertRaisesRegex(AnsibleFilterError, pattern) as caught:
            config(host, **more)
        self.assertNotIn(KEY, str(caught.exception))

    def test_in_a_mesh_there_is_a_tunnel_between_each_two(self):
        self.assertEqual(list(tunnels("hq")), ["berlin-hq", "hq-oslo"])
        self.assertEqual(list(tunnels("oslo")), ["berlin-oslo", "hq-oslo"])

    def test_in_a_hub_there_is_one_between_each_spoke_and_the_hub(self):
        self.assertEqual(list(tunnels("hq", shared=HUB)), ["berlin-hq", "hq-oslo"])
        self.assertEqual(list(tunnels("oslo", shared=HUB)), ["hq-oslo"])

    def test_both_ends_mirror_each_other_and_one_begins(self):
        for shared in (HUB, {}):
            one, other = tunnels("hq", shared=shared)["hq-oslo"], tunnels("oslo", shared=shared)["hq-oslo"]
            self.assertEqual(one["spd"], [{"local": "10.2.0.0/16", "remote": ["10.3.0.0/16"]}])
            self.assertEqual(other["spd"], [{"local": "10.3.0.0/16", "remote": ["10.2.0.0/16"]}])
            self.assertEqual({one["start"], other["start"]}, {"active", "passive"})
        # A spoke may be behind a NAT.
        self.assertEqual(tunnels("hq", shared=HUB)["hq-oslo"]["start"], "passive")

    def test_more_keys_of_a_tunnel_hold_at_both_ends_and_stand_beside_those_of_the_host(self):
        shared = {"cygnet_tunnels": {"hq-oslo": {"esp": {"lifetime": "30m"}}}}
        own = {"cygnet_tunnel_options": {"esp": {"bytes": "1GiB"}}}
        self.assertEqual(tunnels("hq", shared=shared, hq=own)["hq-oslo"]["esp"], {"bytes": "1GiB", "lifetime": "30m"})
        self.assertEqual(tunnels("oslo", shared=shared)["hq-oslo"]["esp"], {"lifetime": "30m"})
        self.assertNotIn("esp", tunnels("oslo", shared=shared)["berlin-oslo"])

    def test_the_others_see_a_host_by_its_public_address_and_identity(self):
        oslo = {"cygnet_address": {"interface": "eth0"}, "cygnet_public_address": "203.0.113.3", "cygnet_id": "oslo.example"}
        peers = config("hq", oslo=oslo)["customer_gateways"]
        self.assertIn({"name": "oslo", "address": "203.0.113.3", "id": "oslo.example"}, peers)
        gateway = config("oslo", oslo=oslo)["gateways"][0]
        self.assertEqual((gateway["address"], gateway["id"]), ({"interface": "eth0"}, "oslo.example"))

    def test_a_peer_of_somebody_else_joins_the_hub_or_whom_it_says(self):
        said = {"address": "198.51.100.1", "networks": ["10.80.0.0/16"], "preset": "strongswan"}
        shared = {**HUB, "cygnet_foreign": {"supplier": said}}
        self.assertEqual(tunnels("hq", shared=shared)["hq-supplier"]["start"], "active")
        self.assertEqual(list(tunnels("oslo", shared=shared)), ["hq-oslo"])
        shared = {**HUB, "cygnet_foreign": {"supplier": {**said, "joins": ["oslo"]}}, "cygnet_psks": {"hq-oslo": KEY, "oslo-supplier": KEY}}
        self.assertEqual(list(tunnels("oslo", shared=shared)), ["hq-oslo", "oslo-supplier"])

    def test_several_keys_are_good_at_once_or_the_newest_alone(self):
        shared = {**HUB, "cygnet_psks": {"hq-oslo": [{"id": "b", "psk": KEY}, {"id": "a", "psk": KEY[::-1]}]}}
        self.assertEqual(tunnels("oslo", shared=shared)["hq-oslo"]["auth"], {"psk_files": ["keys/hq-oslo.b.psk", "keys/hq-oslo.a.psk"]})
        newest = config("oslo", use="newest", shared=shared)
        self.assertEqual(newest["tunnels"][0]["auth"], {"psk_file": "keys/hq-oslo.b.psk"})
        self.assertEqual(fleet.cygnet_keys(newest, shared["cygnet_psks"]), [{"file": "keys/hq-oslo.b.psk", "psk": KEY}])

    def test_a_configuration_of_ones_own_gets_its_keys(self):
        own = {"cygnet_config": {"gateways": [], "tunnels": [{"name": "hq-oslo"}, {"name": "x", "auth": {"psk_file": "/etc/x"}}]}}
        made = config("hq", hq=own)
        self.assertEqual([tunnel["auth"]["psk_file"] for tunnel in made["tunnels"]], ["keys/hq-oslo.1.psk", "/etc/x"])
        self.assertEqual([key["file"] for key in fleet.cygnet_keys(made, {"hq-oslo": KEY})], ["keys/hq-oslo.1.psk"])

    def test_what_cannot_be_is_refused_with_the_variable_and_no_key(self):
        self.refused("cygnet_topology.*ring", shared={"cygnet_topology": "ring"})
        self.refused('cygnet_hub: "paris" is no host', shared={**HUB, "cygnet_hub": "paris"})
        self.refused("cygnet_address of oslo", oslo={"cygnet_address": {"interface": "eth0"}})
        self.refused("cygnet_networks of oslo", oslo={"cygnet_networks": "10.3.0.0/16"})
        self.refused("cygnet_psks: hq-oslo: the tunnel has no key", shared={"cygnet_psks": {"berlin-hq": KEY}})
        self.refused("not of the form", shared={"cygnet_psks": {"berlin-hq": [KEY]}})
        self.refused("usable id", shared={"cygnet_psks": {"berlin-hq": [{"id": "../x", "psk": KEY}]}})
        self.refused("two keys with id", shared={"cygnet_psks": {"berlin-hq": [{"id": 1, "psk": KEY}] * 2}})
        self.refused("cygnet_tunnels: hq-berlin", shared={"cygnet_tunnels": {"hq-berlin": {}}})
        self.refused("cygnet_foreign: supplier", shared={"cygnet_foreign": {"supplier": {"address": "198.51.100.1"}}})
        self.refused("cygnet_name of oslo", oslo={"cygnet_name": "a/b"})
        names = {"berlin": {"cygnet_name": "a"}, "hq": {"cygnet_name": "a-b"}, "oslo": {"cygnet_name": "a-b"}}
        self.refused('two tunnels would be named "a-a-b"', host="berlin", shared={"cygnet_psks": {"a-a-b": KEY}}, **names)

    def test_a_key_that_changes_in_its_file_is_found(self):
        keys = [{"file": "keys/a.1.psk", "psk": "secret"}]
        same = "b37e50cedcd3e3f1ff64f4afc0422084ae694253cf399326868e07a35f4a45fb"
        self.assertEqual(fleet.cygnet_changed_keys(keys, [f"{same}  /etc/cygnet/keys/a.1.psk"]), [])
        self.assertEqual(fleet.cygnet_changed_keys(keys, [f"{'0' * 64}  /etc/cygnet/keys/a.1.psk"]), ["keys/a.1.psk"])
        self.assertEqual(fleet.cygnet_changed_keys(keys, []), [])

    def test_keys_are_made_added_and_dropped(self):
        members = ["berlin", "hq", "oslo"]
        hosts = inventory({**HUB, "cygnet_psks": {"berlin-hq": KEY}})
        made = fleet.cygnet_new_psks(hosts, members, "fill", "n")
        self.assertEqual({name: [key["id"] for key in keys] for name, keys in made.items()}, {"berlin-hq": ["1"], "hq-oslo": ["n"]})
        self.assertRegex(made["hq-oslo"][0]["psk"], "^[A-Za-z0-9]{43}$")
        hosts = inventory({**HUB, "cygnet_psks": made})
        added = fleet.cygnet_new_psks(hosts, members, "add", "m")
        self.assertEqual([key["id"] for key in added["berlin-hq"]], ["m", "1"])
        hosts = inventory({**HUB, "cygnet_psks": added})
        # Done twice it is done once.
        self.assertEqual(fleet.cygnet_new_psks(hosts, members, "add", "m"), added)
        dropped = fleet.cygnet_new_psks(hosts, members, "drop", "")
        self.assertEqual([key["id"] for key in dropped["berlin-hq"]], ["m"])


class Answers(unittest.TestCase):
    CONFIG = {"tunnels": [{"name": name, "customer_gateway": name[-1], "start": start}
                          for name, start in (("h-a", "active"), ("h-b", "passive"), ("h-c", "on-demand"))]}

    @staticmethod
    def status(**states):
        return {"tunnels": [{"name": f"h-{name}", "last_error": None, **state} for name, state in states.items()]}

    def test_what_was_up_and_what_is_ready_at_both_ends_must_be_up(self):
        before = self.status(a={"state": "connecting"}, b={"state": "rekeying"})
        self.assertEqual(answers.cygnet_expected(self.CONFIG, before, []), ["h-b"])
        self.assertEqual(answers.cygnet_expected(self.CONFIG, {}, ["a", "c"]), ["h-a"])
        self.assertEqual(answers.cygnet_expected(self.CONFIG, before, ["a"], ["h-b"]), ["h-a"])

    def test_what_is_wrong_is_told_unless_it_was_so_before(self):
        up = self.status(a={"state": "up"})
        self.assertEqual(answers.cygnet_unmet(up, ["h-a"], up), [])
        self.assertEqual(answers.cygnet_unmet(up, ["h-b"], up), ["h-b: the daemon does not know it"])
        down = self.status(a={"state": "connecting", "last_error": "no answer"})
        self.assertEqual(answers.cygnet_unmet(down, ["h-a"], up), ["h-a: connecting, no answer"])
        refused = self.status(a={"state": "up", "last_error": "refused"})
        self.assertEqual(answers.cygnet_unmet(refused, ["h-a"], up), ["h-a: refused"])
        self.assertEqual(answers.cygnet_unmet(refused, ["h-a"], refused), [])
        warned = self.status(a={"state": "up", "warnings": ["new keys are refused"]})
        self.assertEqual(answers.cygnet_unmet(warned, ["h-a"], up), ["h-a: new keys are refused"])
        partly = self.status(a={"state": "up", "coverage": {"pairs": 2, "covered": 1}})
        self.assertEqual(answers.cygnet_unmet(partly, ["h-a"], partly), ["h-a: carries 1 of 2 pairs of networks"])

    def test_a_plan_is_shown_as_the_command_shows_it(self):
        change = {"field": "esp.lifetime", "before": "1h", "after": "30m", "impact": "rekey"}
        key = {"field": "auth.psk", "before": None, "after": None, "impact": "in-place"}
        restart = {"field": "state_dir", "before": "/a", "after": None, "impact": "restart"}
        plan = {"steps": [
            {"object": "daemon", "name": "", "action": "change", "impact": "restart", "changes": [restart]},
            {"object": "customer-gateway", "name": "c", "action": "add", "impact": "in-place", "changes": []},
            {"object": "tunnel", "name": "a", "action": "change", "impact": "rekey", "changes": [change, key]},
            {"object": "tunnel", "name": "b", "action": "keep", "impact": "untouched", "changes": []},
        ], "notes": ["the bandwidth stays"]}
        self.assertEqual(answers.cygnet_plan_lines(plan), [
            "~ daemon: restart", "    state_dir: /a -> (none)", "+ customer gateway c: new", "~ tunnel a: rekey",
            "    esp.lifetime: 1h -> 30m", "    auth.psk: (changed)", "note: the bandwidth stays"])
        self.assertEqual(answers.cygnet_waits_for_restart(plan), ["state_dir"])


if __name__ == "__main__":
    unittest.main()
