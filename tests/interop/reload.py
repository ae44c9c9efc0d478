#!/usr/bin/env python3
"""Changes one of many tunnels in every way, one after the other, while packets pass all of them.

usage: reload.py LAB DIR CYGNET PLANE TUNNELS PACKETS-PER-SECOND

Two gateways of scripts/lib/topology.sh, with as many tunnels between them. For each change the plan must tell what it
costs, and it must cost no more: the other tunnels keep their SPIs and lose no packet, and the changed one loses none
either where the plan says "in place" or "rekey". Prints a line for each change. The exit code is 0 if all held.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time

PORT = 7000
OUTER = {"gwa": "192.0.2.1", "gwb": "198.51.100.2"}
NET = {"gwa": "10.1", "gwb": "10.2"}
KEY = "0x" + "5a" * 32


def inside(lab, host, command):
    return ["ip", "netns", "exec", f"{lab}-{host}", *command]


# --- packets -------------------------------------------------------------------------------------------------------


def echo(tunnels):
    """Sends each packet back by the socket that it came on."""
    poll = select.epoll()
    sockets = {}
    for k in tunnels:
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        s.bind((f"10.2.{k}.2", PORT))
        s.setblocking(False)
        sockets[s.fileno()] = s
        poll.register(s, select.EPOLLIN)
    print("ready", flush=True)
    while True:
        for fd, _ in poll.poll():
            try:
                while True:
                    data, source = sockets[fd].recvfrom(64)
                    sockets[fd].sendto(data, source)
            except OSError:
                pass


def flood(tunnels, rate):
    """Sends packets through all tunnels until it is told to end; then tells which were never answered, and when they
    were sent."""
    sockets, sent, missing = {}, 0, {k: {} for k in tunnels}
    poll = select.epoll()
    for k in tunnels:
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        s.bind((f"10.1.{k}.2", PORT))
        s.connect((f"10.2.{k}.2", PORT))
        s.setblocking(False)
        sockets[s.fileno()] = (k, s)
        poll.register(s, select.EPOLLIN)
    running = [True]
    signal.signal(signal.SIGTERM, lambda *_: running.clear())
    print("ready", flush=True)
    due, seq, ends = time.monotonic(), 0, None
    while running or time.monotonic() < ends:
        if not running and ends is None:
            ends = time.monotonic() + 2
        if running and time.monotonic() >= due:
            due += 1 / rate
            seq += 1
            for k, s in sockets.values():
                sent += 1
                missing[k][seq] = time.time()
                try:
                    s.send(b"%d" % seq)
                except OSError:
                    pass
        for fd, _ in poll.poll(max(0, min(0.05, due - time.monotonic()))):
            k, s = sockets[fd]
            try:
                while True:
                    missing[k].pop(int(s.recv(64)), None)
            except OSError:
                pass
        if not running and ends is None:
            ends = time.monotonic() + 2
    print(json.dumps({"sent": sent, "missing": {k: sorted(m.values()) for k, m in missing.items()}}))


# --- the two gateways ----------------------------------------------------------------------------------------------


class Tunnel:
    def __init__(self, k):
        self.k = k
        self.extra = {}
        self.ike, self.esp, self.auth = {}, {}, {"psk": KEY}
        self.remotes = 1

    def yaml(self, host):
        peer = "gwb" if host == "gwa" else "gwa"
        def nets(side):
            return [f"{NET[side]}.{self.k}.0/24"] + [f"{NET[side]}.{200 + n}.0/24" for n in range(1, self.remotes)]
        mine, theirs = (nets(host)[:1], nets(peer)) if host == "gwa" else (nets(host), nets(peer)[:1])
        rules = [{"local": m, "remote": theirs} for m in mine]
        own = {
            "name": f"t{self.k}",
            "gateway": "gateway",
            "customer_gateway": "peer",
            "start": "active" if host == "gwa" else "passive",
            "local_id": f"{host}-{self.k}.example",
            "remote_id": f"{peer}-{self.k}.example",
            "auth": self.auth,
            "spd": rules,
            "ike": {"dpd": "30s", **self.ike},
            "esp": self.esp,
        }
        return {**own, **{k: v(host) if callable(v) else v for k, v in self.extra.items()}}


class Gateway:
    def __init__(self, lab, directory, cygnet, plane, host):
        self.lab, self.cygnet, self.plane, self.host = lab, cygnet, plane, host
        self.file, self.socket = f"{directory}/{host}.yaml", f"{directory}/{host}.sock"
        self.log, self.state = f"{directory}/{host}.log", f"{directory}/{host}.state"

    def write(self, tunnels, bandwidth=None):
        peer = "gwb" if self.host == "gwa" else "gwa"
        gateway = {"name": "gateway", "address": OUTER[self.host], "networks": [f"{NET[self.host]}.0.0/16"]}
        if bandwidth:
            gateway["bandwidth"] = bandwidth
        config = {
            "daemon": {"control_socket": self.socket, "state_dir": self.state, "data_plane": self.plane,
                       "metrics": {"listen": "off"}},
            "gateways": [gateway],
            "customer_gateways": [{"name": "peer", "address": OUTER[peer]}],
            "tunnels": [t.yaml(self.host) for t in tunnels],
        }
        with os.fdopen(os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as f:
            json.dump(config, f, indent=1)

    def start(self):
        with open(self.log, "ab") as log:
            command = inside(self.lab, self.host, [self.cygnet, "run", "--config", self.file])
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def ctl(self, *arguments, check=True):
        done = subprocess.run([self.cygnet, "--control", self.socket, *arguments], capture_output=True, text=True)
        if check and done.returncode not in (0, 1):
            raise RuntimeError(f"{self.host}: {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done

    def status(self):
        return json.loads(self.ctl("status", "--json").stdout)

    def up(self):
        done = self.ctl("status", "--json", check=False)
        if done.returncode not in (0, 1):
            return 0
        return sum(t["state"] == "up" for t in json.loads(done.stdout)["tunnels"])

    def spis(self):
        """SPIs by tunnel: of the IKE SA, and of the children."""
        def of(t):
            ike = t["ike"] and t["ike"]["spi_i"]
            return ike, tuple(sorted(c["spi_in"] for c in t["children"]))
        return {t["name"]: of(t) for t in self.status()["tunnels"]}


def wait(seconds, done):
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def changes(tunnels, first):
    """What is changed of the first tunnel, the most that it may cost, and whether the peer's file changes as well."""
    t = tunnels[0]
    other = "0x" + "5b" * 32

    def rotate(key):
        t.auth = {"psk": key}

    yield "dpd", "in-place", lambda: t.ike.update(dpd="20s")
    yield "retransmit", "in-place", lambda: t.ike.update(retransmit={"first": "500ms", "tries": 4})
    yield "fragmentation", "in-place", lambda: t.ike.update(fragmentation=False)
    yield "psk", "in-place", lambda: rotate(other)
    yield "start", "in-place", lambda: t.extra.update(start="active")
    yield "weight", "in-place", lambda: t.extra.update(weight=3)
    yield "bypass", "in-place", lambda: t.extra.update(bypass="none")
    yield "source", "in-place", lambda: t.extra.update(source="none")
    yield "dpd_action", "in-place", lambda: t.esp.update(dpd_action="clear")
    yield "ike lifetime", "rekey", lambda: t.ike.update(lifetime="12h")
    yield "ike proposals", "rekey", lambda: t.ike.update(
        proposals=["aes128gcm16-prfsha256-ecp256", "aes256gcm16-prfsha384-x25519"])
    yield "esp lifetime", "rekey", lambda: t.esp.update(lifetime="30m")
    yield "esp proposals", "rekey", lambda: t.esp.update(proposals=["aes128gcm16-ecp256", "aes256gcm16-x25519"])
    yield "esp volume", "rekey", lambda: t.esp.update(bytes="10GB")
    yield "replay window", "rekey", lambda: t.esp.update(replay_window=2048)

    def widen(n):
        t.remotes = n

    yield "more networks", "rekey", lambda: widen(3)
    yield "fewer networks", "rekey", lambda: widen(1)
    yield "identities", "restart", lambda: t.extra.update(
        local_id=lambda h: f"{h}-other.example",
        remote_id=lambda h: f"{'gwb' if h == 'gwa' else 'gwa'}-other.example")
    yield "encapsulation", "restart", lambda: t.ike.update(encap="force")
    yield "another tunnel", "in-place", lambda: tunnels.append(Tunnel(first + len(tunnels)))
    yield "no other tunnel", "in-place", lambda: tunnels.pop()
    yield "another place in the file", "untouched", lambda: tunnels.append(tunnels.pop(0))


ORDER = ["untouched", "in-place", "rekey", "restart"]


def main():
    lab, directory, cygnet, plane = sys.argv[1:5]
    count, rate = int(sys.argv[5]), int(sys.argv[6])
    first = 1
    tunnels = [Tunnel(first + n) for n in range(count)]
    for host, inner, gateway, via in (("vpc", "10.1", "gwa", "10.1.0.2"), ("idc", "10.2", "gwb", "10.2.0.2")):
        for k in range(first, first + count + 1):
            subprocess.run(inside(lab, host, ["ip", "address", "add", f"{inner}.{k}.2/32", "dev", "lo"]), check=True)
        subprocess.run(inside(lab, gateway, ["ip", "route", "add", f"{inner}.0.0/16", "via", via]), check=True)
    gateways = [Gateway(lab, directory, cygnet, plane, host) for host in ("gwa", "gwb")]
    failures = 0
    children = []
    try:
        for g in reversed(gateways):
            g.write(tunnels)
            g.start()
        if not wait(60, lambda: all(g.up() == count for g in gateways)):
            print(f"only {[g.up() for g in gateways]} of {count} tunnels are up")
            return 1
        names = [str(t.k) for t in tunnels]
        me = [sys.executable, os.path.abspath(__file__)]

        def begin(host, *what):
            process = subprocess.Popen(inside(lab, host, me + [*what, *names]), stdout=subprocess.PIPE, text=True)
            children.append(process)
            process.stdout.readline()
            return process

        begin("idc", "--echo")
        sender = begin("vpc", "--flood", str(rate))
        time.sleep(2)
        told = []
        for n, (what, most, change) in enumerate(changes(tunnels, first)):
            before = [g.spis() for g in gateways]
            began = time.time()
            changed = tunnels[0]
            change()
            impact = "untouched"
            # Each end is the first one in turn.
            for g in gateways if n % 2 else reversed(gateways):
                g.write(tunnels)
                plan = json.loads(g.ctl("plan", "--json").stdout)
                impact = max([impact, *(s["impact"] for s in plan["steps"])], key=ORDER.index)
                applied = g.ctl("apply", "--json", check=False)
                if applied.returncode != 0:
                    raise RuntimeError(f"{what}: {applied.stdout}{applied.stderr}")
                time.sleep(0.2)
            if impact in ("rekey", "restart"):
                name = f"t{changed.k}"
                wait(10, lambda: all(g.spis()[name] != b[name] for g, b in zip(gateways, before)))
            # What was replaced stays for a moment.
            alone = lambda g: len(g.spis()[f"t{changed.k}"][1]) == 1
            settled = wait(20, lambda: all(g.up() == len(tunnels) and alone(g) for g in gateways))
            time.sleep(1.5)
            after = [g.spis() for g in gateways]
            moved = {name for b, a in zip(before, after) for name in b if name in a and a[name] != b[name]}
            told.append((what, most, impact, began, time.time(), moved, settled, changed.k))
        sender.terminate()
        result = json.loads(sender.communicate()[0])
        for what, most, impact, began, ended, moved, settled, k in told:
            lost = {int(t): sum(began <= at < ended for at in m) for t, m in result["missing"].items()}
            own, others = lost.get(k, 0), sum(n for t, n in lost.items() if t != k)
            wrong = []
            if impact != most:
                wrong.append(f"the plan says {impact}, not {most}")
            if others:
                wrong.append(f"{others} packets of others lost")
            if own and most != "restart":
                wrong.append("packets lost")
            if moved - {f"t{k}"}:
                wrong.append(f"others have new SPIs: {sorted(moved)}")
            if moved and most in ("untouched", "in-place"):
                wrong.append("it has new SPIs")
            if not moved and most in ("rekey", "restart") and what != "encapsulation":
                wrong.append("it has the same SPIs")
            if not settled:
                wrong.append("not all tunnels came up again")
            failures += bool(wrong)
            print(json.dumps({"change": what, "impact": impact, "lost": own, "lost_of_others": others,
                              "ok": not wrong, "wrong": wrong}), flush=True)
        print(json.dumps({"tunnels": count, "sent": result["sent"],
                          "lost": sum(len(m) for m in result["missing"].values())}))
        return 1 if failures else 0
    finally:
        for process in children:
            process.kill()
            process.wait()
        for g in gateways:
            if hasattr(g, "process"):
                g.process.terminate()
        for g in gateways:
            if hasattr(g, "process"):
                g.process.wait()


if sys.argv[1] == "--echo":
    echo([int(k) for k in sys.argv[2:]])
elif sys.argv[1] == "--flood":
    flood([int(k) for k in sys.argv[3:]], int(sys.argv[2]))
else:
    sys.exit(main())
