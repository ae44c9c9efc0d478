"""What the hosts of a fleet say of themselves, made into each host's cygnet.yaml.

Pure functions of the inventory: nothing here reads a file or asks a host. What they refuse, they refuse with the name
of the variable, what is wrong and what would be right. No message quotes a key.
"""

import hashlib
import re
import secrets
import string
from collections.abc import Mapping

from ansible.errors import AnsibleFilterError

# As cygnet takes names of objects; ids become parts of names of files.
NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,62}$")
KEY_ID = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,31}$")
# 43 of 62 characters are 256 bits.
KEY_CHARACTERS = string.ascii_letters + string.digits
KEY_LENGTH = 43
TOPOLOGIES = ("hub", "mesh")
STARTS = ("active", "passive", "on-demand")


def refuse(variable, what, fix):
    """Ends the play with what is wrong with a variable."""
    raise AnsibleFilterError(f"{variable}: {what}; {fix}")


def merged(base, over):
    """`over` upon `base`, mappings inside of them likewise."""
    result = dict(base)
    for key, value in (over or {}).items():
        inner = result.get(key)
        both = isinstance(inner, Mapping) and isinstance(value, Mapping)
        result[key] = merged(inner, value) if both else value
    return result


def name_of(hostvars, host):
    """The name under which a host stands in the configurations of all."""
    name = str(hostvars[host].get("cygnet_name") or host)
    if not NAME.match(name):
        fix = 'set cygnet_name: letters, digits, ".", "_" and "-", 63 at most'
        refuse(f"cygnet_name of {host}", f'"{name}" is not a usable name', fix)
    return name


def site_of(hostvars, host):
    """What the others need to know of a host."""
    variables = hostvars[host]
    address = variables.get("cygnet_public_address") or variables.get("cygnet_address")
    networks = variables.get("cygnet_networks")
    if not isinstance(address, str):
        fix = "say cygnet_address, and cygnet_public_address where the others see it by another"
        refuse(f"cygnet_address of {host}", "the others do not know where it is", fix)
    if isinstance(networks, str) or not networks:
        refuse(f"cygnet_networks of {host}", "it has no networks", "list them, as in [10.1.0.0/16]")
    return {
        "name": name_of(hostvars, host),
        "host": host,
        "address": str(address),
        "id": variables.get("cygnet_id"),
        "networks": list(networks),
        "managed": True,
    }


def foreign_site(name, said):
    """A peer that somebody else runs."""
    where = f"cygnet_foreign: {name}"
    if not NAME.match(str(name)):
        refuse(where, "that is not a usable name", 'use letters, digits, ".", "_" and "-"')
    if not isinstance(said, Mapping) or not said.get("address") or not said.get("networks"):
        refuse(where, "address or networks are missing", "say both, as for a host of our own")
    unknown = sorted(set(said) - {"address", "networks", "id", "preset", "joins"})
    if unknown:
        refuse(where, f"{unknown[0]} is not known", "there are address, networks, id, preset and joins")
    return {**said, "name": str(name), "host": None, "managed": False}


def tunnel_name(one, other):
    """The same at both ends, and under either topology, so that a tunnel outlives a change of it."""
    return "-".join(sorted((one, other)))


def peers_of(hostvars, host, members):
    """The sites to which a host has a tunnel, in the order of their names."""
    own = hostvars[host]
    topology = own.get("cygnet_topology", "mesh")
    hub = own.get("cygnet_hub")
    if topology not in TOPOLOGIES:
        refuse("cygnet_topology", f'"{topology}" is not known', "it is hub or mesh")
    if topology == "hub" and hub not in members:
        refuse("cygnet_hub", f'"{hub or ""}" is no host of the group', "name the host in the middle")
    others = [other for other in members if other != host]
    if topology == "hub" and host != hub:
        others = [hub]
    sites = [site_of(hostvars, other) for other in others]
    joins = [hub] if topology == "hub" else list(members)
    for name, said in (own.get("cygnet_foreign") or {}).items():
        site = foreign_site(name, said)
        wanted = site.get("joins") or joins
        for other in wanted:
            if other not in members:
                refuse(f"cygnet_foreign: {name}", f'joins: "{other}" is no host of the group', "name hosts of ours")
        if host in wanted:
            sites.append(site)
    return sorted(sites, key=lambda site: site["name"])


def who_begins(own, name, peer, hub):
    """Of a tunnel between two of ours one end begins, so that they do not meet halfway: the spoke, which may be behind a
    NAT, or the first by name. With others we always begin."""
    if not peer["managed"]:
        return "active"
    if hub is not None:
        return "passive" if own == hub else "active"
    return "active" if name < peer["name"] else "passive"


def key_list(psks, tunnel):
    """The keys of a tunnel, the one to use first: [{id, psk}]."""
    where = f"cygnet_psks: {tunnel}"
    said = (psks or {}).get(tunnel)
    if not said:
        refuse(where, "the tunnel has no key", "make one with playbooks/keys.yml, or with: cygnet psk")
    if not isinstance(said, (list, tuple)):
        said = [{"id": "1", "psk": said}]
    keys = []
    for key in said:
        if not isinstance(key, Mapping) or set(key) != {"id", "psk"}:
            refuse(where, "a key is not of the form { id, psk }", "give each key an id that it keeps, the newest first")
        ident = str(key["id"])
        if not KEY_ID.match(ident):
            refuse(where, f'"{ident}" is not a usable id', "use up to 32 letters, digits or dashes, as in 2026-11")
        if any(ident == other["id"] for other in keys):
            refuse(where, f'there are two keys with id "{ident}"', "give each its own")
        keys.append({"id": ident, "psk": str(key["psk"])})
    return keys


def used_keys(psks, tunnel, use):
    """Those of the keys that shall be good."""
    if use not in ("all", "newest"):
        refuse("cygnet_psk_use", f'"{use}" is not known', "it is all or newest")
    keys = key_list(psks, tunnel)
    return keys[:1] if use == "newest" else keys


def key_file(tunnel, key):
    """Where a key is, from the directory of the configuration. Its content never changes."""
    return f"keys/{tunnel}.{key['id']}.psk"


def auth_of(psks, tunnel, use):
    """The tunnel's `auth`."""
    files = [key_file(tunnel, key) for key in used_keys(psks, tunnel, use)]
    return {"psk_file": files[0]} if len(files) == 1 else {"psk_files": files}


def own_gateway(hostvars, host):
    """The host's own gateway."""
    own = hostvars[host]
    gateway = {"name": name_of(hostvars, host), "address": own.get("cygnet_address")}
    if not gateway["address"]:
        refuse(f"cygnet_address of {host}", "it is missing", "an address, or { interface: eth0 }")
    if own.get("cygnet_id"):
        gateway["id"] = own["cygnet_id"]
    gateway["networks"] = list(own.get("cygnet_networks") or [])
    return merged(gateway, own.get("cygnet_gateway_options"))


def fleet_config(hostvars, host, members, use):
    """The configuration of a host, from what all hosts say."""
    own = hostvars[host]
    gateway = own_gateway(hostvars, host)
    hub = own.get("cygnet_hub") if own.get("cygnet_topology", "mesh") == "hub" else None
    customers, tunnels = [], []
    for peer in peers_of(hostvars, host, members):
        customer = {key: peer[key] for key in ("name", "address", "id", "preset") if peer.get(key)}
        customers.append(customer)
        name = tunnel_name(gateway["name"], peer["name"])
        if any(name == tunnel["name"] for tunnel in tunnels):
            refuse("cygnet_name", f'two tunnels would be named "{name}"', "name hosts so that their pairs differ")
        if not NAME.match(name):
            refuse("cygnet_name", f'the tunnel\'s name "{name}" is too long', "give both hosts shorter names")
        tunnel = {
            "name": name,
            "gateway": gateway["name"],
            "customer_gateway": peer["name"],
            "start": who_begins(host, gateway["name"], peer, hub),
            "auth": auth_of(own.get("cygnet_psks"), name, use),
            "spd": [{"local": local, "remote": list(peer["networks"])} for local in gateway["networks"]],
        }
        tunnel = merged(tunnel, own.get("cygnet_tunnel_options"))
        tunnels.append(merged(tunnel, (own.get("cygnet_tunnels") or {}).get(name)))
    known = {tunnel_name(a, b) for a in all_names(hostvars, members, own) for b in all_names(hostvars, members, own)}
    for name in own.get("cygnet_tunnels") or {}:
        if name not in known:
            refuse(f"cygnet_tunnels: {name}", "there is no such tunnel", "its name is that of both ends in alphabetical order")
    config = {"gateways": [gateway], "customer_gateways": customers, "tunnels": tunnels}
    return {"daemon": dict(own["cygnet_daemon"]), **config} if own.get("cygnet_daemon") else config


def all_names(hostvars, members, own):
    """Names of all ends of tunnels."""
    return [name_of(hostvars, member) for member in members] + list(own.get("cygnet_foreign") or {})


def cygnet_config(hostvars, host, members, use="all"):
    """The host's configuration: what cygnet_config says with the keys put into it, else what the fleet amounts to."""
    given = hostvars[host].get("cygnet_config")
    if not given:
        return fleet_config(hostvars, host, list(members), use)
    config = dict(given)
    tunnels = []
    for tunnel in config.get("tunnels") or []:
        if "auth" not in tunnel:
            tunnel = {**tunnel, "auth": auth_of(hostvars[host].get("cygnet_psks"), tunnel.get("name"), use)}
        tunnels.append(tunnel)
    return {**config, "tunnels": tunnels}


def cygnet_keys(config, psks):
    """Files with keys that a configuration names, of those that the role writes: [{file, psk}]. For no_log tasks."""
    keys = []
    for tunnel in config.get("tunnels") or []:
        auth = tunnel.get("auth") or {}
        named = [auth["psk_file"]] if auth.get("psk_file") else list(auth.get("psk_files") or [])
        ours = {key_file(tunnel["name"], key): key["psk"] for key in (key_list(psks, tunnel["name"]) if (psks or {}).get(tunnel["name"]) else [])}
        keys += [{"file": file, "psk": ours[file]} for file in named if file in ours]
    return keys


def cygnet_changed_keys(keys, sums):
    """Names of files whose content is another than what they shall hold; `sums` are lines of sha256sum."""
    there = {line.split(None, 1)[1]: line.split(None, 1)[0] for line in sums if line.strip()}
    changed = []
    for key in keys:
        digest = hashlib.sha256((key["psk"] + "\n").encode()).hexdigest()
        if any(path.endswith("/" + key["file"]) and value != digest for path, value in there.items()):
            changed.append(key["file"])
    return changed


def new_key():
    """A key of 256 bits."""
    return "".join(secrets.choice(KEY_CHARACTERS) for _ in range(KEY_LENGTH))


def cygnet_new_psks(hostvars, members, step, ident):
    """cygnet_psks with a key for every tunnel: `fill` adds those that are missing, `add` a new key to each, `drop` takes all
    but the newest. Those of peers that somebody else runs are left to fill by hand, but not lost."""
    if step not in ("fill", "add", "drop"):
        refuse("cygnet_keys_step", f'"{step}" is not known', "it is fill, add or drop")
    result = {}
    for host in members:
        own = hostvars[host]
        psks = own.get("cygnet_psks") or {}
        for name in psks:
            result.setdefault(name, key_list(psks, name))
        for peer in peers_of(hostvars, host, members):
            if peer["managed"]:
                result.setdefault(tunnel_name(name_of(hostvars, host), peer["name"]), [])
    for name, keys in result.items():
        if not keys or (step == "add" and keys[0]["id"] != ident):
            result[name] = [{"id": ident, "psk": new_key()}] + keys
        elif step == "drop":
            result[name] = keys[:1]
    return dict(sorted(result.items()))


class FilterModule:
    """Filters of the role."""

    def filters(self):
        return {
            "cygnet_config": cygnet_config,
            "cygnet_keys": cygnet_keys,
            "cygnet_changed_keys": cygnet_changed_keys,
            "cygnet_new_psks": cygnet_new_psks,
        }
