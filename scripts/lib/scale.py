"""One round of `scripts/bench scale`: two daemons with N tunnels between them, measured. Prints a line of JSON.

usage: scale.py PROGRAM TUNNELS DIRECTORY NAMESPACES     the laboratory of topology.sh is up; NAMESPACES is its prefix
"""

import json
import os
import re
import signal
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time

PROGRAM, TUNNELS, DIRECTORY, LAB = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
# Outer address, the first octet of the networks behind it.
SIDES = {"gwa": ("192.0.2.1", 20), "gwb": ("198.51.100.2", 30)}
PEER = {"gwa": "gwb", "gwb": "gwa"}
# Longest waits in seconds.
READY, UP, END = 900, 300, 300
# For so many seconds it is looked what idleness costs.
IDLE = 60
# Root may have sixteen control connections.
CLIENTS = 15


def note(text):
    print(f"scale: {TUNNELS}: {text}", file=sys.stderr, flush=True)


def configure(host, start):
    own, octet = SIDES[host]
    peer, other = SIDES[PEER[host]]
    names = {"gwa": "gwa-{}.example", "gwb": "gwb.example"}
    lines = [
        "daemon:",
        f"  control_socket: {DIRECTORY}/{host}.sock",
        f"  state_dir: {DIRECTORY}/{host}.state",
        f"  data_plane: {os.environ.get('PLANE', 'userspace')}",
        '  metrics: { listen: "127.0.0.1:9180" }',
        "gateways:",
        f"  - {{ name: gateway, address: {own}, networks: [{octet}.0.0.0/8] }}",
        "customer_gateways:",
        f"  - {{ name: peer, address: {peer} }}",
        "tunnels:",
    ]
    for n in range(TUNNELS):
        high, low = divmod(n, 256)
        lines += [
            f"  - name: t{n}",
            "    gateway: gateway",
            "    customer_gateway: peer",
            f"    local_id: {names[host].format(n)}",
            f"    remote_id: {names[PEER[host]].format(n)}",
            f"    start: {start}",
            "    auth: { psk_file: psk }",
            "    source: none",
            f"    spd: [{{ local: {octet}.{high}.{low}.0/24, remote: [{other}.{high}.{low}.0/24] }}]",
            "    ike: { proposals: [aes256gcm16-prfsha384-x25519], dpd: 30s, retransmit: { first: 500ms, tries: 6 } }",
            "    esp: { proposals: [aes256gcm16-x25519] }",
        ]
    with open(f"{DIRECTORY}/{host}.yaml", "w") as file:
        file.write("\n".join(lines) + "\n")


class Daemon:
    """A daemon in its namespace."""

    def __init__(self, host, start):
        configure(host, start)
        self.host = host
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify.bind(f"{DIRECTORY}/{host}.notify")
        log = open(f"{DIRECTORY}/{host}.log", "w")
        environment = dict(os.environ, NOTIFY_SOCKET=f"{DIRECTORY}/{host}.notify")
        self.began = time.perf_counter()
        command = ["ip", "netns", "exec", f"{LAB}-{host}", PROGRAM, "run", "--config", f"{DIRECTORY}/{host}.yaml"]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        notify.settimeout(READY)
        while b"READY=1" not in notify.recv(4096):
            pass
        self.ready_at = time.perf_counter()
        self.ready = self.ready_at - self.began
        notify.close()

    def cpu(self):
        """Seconds on the processor, of all threads."""
        task = f"/proc/{self.process.pid}/task"
        return sum(int(open(f"{task}/{t}/schedstat").read().split()[0]) for t in os.listdir(task)) / 1e9

    def threads(self):
        """The same by the names of threads."""
        task, sums = f"/proc/{self.process.pid}/task", {}
        for t in os.listdir(task):
            name = open(f"{task}/{t}/comm").read().strip()
            sums[name] = sums.get(name, 0) + int(open(f"{task}/{t}/schedstat").read().split()[0]) / 1e9
        return sums

    def rss(self):
        """Resident KiB."""
        return int(re.search(r"VmRSS:\s+(\d+)", open(f"/proc/{self.process.pid}/status").read())[1])

    def control(self, *words):
        """Milliseconds that a command took. A tunnel that is not up is no failure of the command."""
        began = time.perf_counter()
        command = [PROGRAM, "--control", f"{DIRECTORY}/{self.host}.sock", *words]
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return 1000 * (time.perf_counter() - began)

    def can(self, verb, option):
        """Whether this build knows an option."""
        return option in subprocess.run([PROGRAM, verb, "--help"], capture_output=True, text=True).stdout

    def connect(self):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(f"{DIRECTORY}/{self.host}.sock")
        return connection

    def scrape(self):
        """What the exporter says, after a line with the milliseconds that it took."""
        command = ["ip", "netns", "exec", f"{LAB}-{self.host}", sys.executable, "-c", SCRAPE]
        return subprocess.run(command, capture_output=True, check=True).stdout

    def end(self):
        began = time.perf_counter()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(END)
        return time.perf_counter() - began


SCRAPE = """
import sys, time, urllib.request
began = time.perf_counter()
page = urllib.request.urlopen("http://127.0.0.1:9180/metrics").read()
sys.stdout.buffer.write(b"%.3f\\n" % (1000 * (time.perf_counter() - began)) + page)
"""


def counted(page, name):
    found = re.search(rb"^%s (\d+(?:\.\d+)?)" % name.encode(), page, re.M)
    return float(found[1]) if found else 0


def retransmits(daemons):
    return int(sum(counted(d.scrape(), "cygnet_ike_retransmits_total") for d in daemons))


def ask(connection, request):
    body = json.dumps(request).encode()
    connection.sendall(struct.pack(">I", len(body)) + body)
    size = struct.unpack(">I", exactly(connection, 4))[0]
    return json.loads(exactly(connection, size))


def exactly(connection, size):
    data = bytearray()
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            raise EOFError("the daemon hung up")
        data += piece
    return bytes(data)


def rekey_all(daemon, ike):
    """New keys for every tunnel: rate in tunnels a second, and how many were refused."""
    turns, lock, refused = iter(range(TUNNELS)), threading.Lock(), []

    def client():
        connection = daemon.connect()
        while True:
            with lock:
                n = next(turns, None)
            if n is None:
                return
            answer = ask(connection, {"verb": "rekey", "tunnel": f"t{n}", "ike": ike, "timeout_s": 60})
            if answer["answer"] != "done":
                refused.append(answer)

    began = time.perf_counter()
    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return TUNNELS / (time.perf_counter() - began), len(refused)


def wait_up(daemon):
    """Waits until every tunnel is up, as the exporter shows it, and says how many are."""
    end = time.monotonic() + UP
    while True:
        up = len(re.findall(rb"^cygnet_tunnel_up\{[^}]*\} 1$", daemon.scrape(), re.M))
        if up >= TUNNELS or time.monotonic() > end:
            return up
        time.sleep(0.2)


def idle_parts(daemons):
    """What daemons take while nothing happens, in parts of a core: all of it, the sampler by what the daemon says of itself
    (a part of the loop's; 0 of a build that does not say it), and each thread; and how many exchanges of IKE it began in a
    second, which are keepalives."""

    def took():
        return time.perf_counter(), [(d.cpu(), d.threads()) for d in daemons]

    def told():
        names = ["cygnet_sampling_cpu_seconds_total", "cygnet_ike_rtt_seconds_count"]
        return [[counted(page, name) for name in names] for page in [d.scrape() for d in daemons]]

    # The pages are outside of the time that is measured.
    before = told()
    began, first = took()
    time.sleep(IDLE)
    ended, last = took()
    after = told()
    percent = lambda old, new: round(100 * (new - old) / (ended - began), 2)
    parts = []
    for (cpu, threads), (cpu_then, threads_then), old, new in zip(first, last, before, after):
        each = {t: percent(threads.get(t, 0), s) for t, s in threads_then.items()}
        parts.append({
            "cpu_percent": percent(cpu, cpu_then),
            "sampler_percent": percent(old[0], new[0]),
            "own_exchanges_per_s": round((new[1] - old[1]) / (ended - began), 1),
            "threads_percent": {t: s for t, s in sorted(each.items(), key=lambda x: -x[1]) if s >= 0.01},
        })
    return parts


def typical(measure, times=5):
    return statistics.median(measure() for _ in range(times))


def main():
    began = time.perf_counter()
    out = {"tunnels": TUNNELS}
    passive = Daemon("gwb", "passive")
    out["ready_s"] = passive.ready
    out["check_ms"] = typical(lambda: passive.control("check", f"{DIRECTORY}/gwb.yaml"), 3)
    before, cpu = passive.rss(), passive.cpu()
    note(f"passive side ready in {passive.ready:.2f} s")
    active = Daemon("gwa", "active")
    out["ready_active_s"] = active.ready
    note(f"active side ready in {active.ready:.2f} s")
    up = wait_up(active)
    out["all_up_s"] = time.perf_counter() - active.ready_at
    out["up"] = up
    note(f"{up} up in {out['all_up_s']:.2f} s")
    both = [active, passive]
    out["retransmits"] = retransmits(both)
    out["responder_cpu_ms"] = 1000 * (passive.cpu() - cpu) / TUNNELS
    out["responder_kib_per_tunnel"] = (passive.rss() - before) / TUNNELS
    out["responder_mib"] = passive.rss() / 1024
    out["initiator_mib"] = active.rss() / 1024
    out["status_name_ms"] = typical(lambda: active.control("status", "t0"))
    out["status_ms"] = typical(lambda: active.control("status"))
    # A page that nobody has asked for yet: the daemon publishes anew every five seconds.
    out["scrape_ms"] = max(float(active.scrape().split(b"\n", 1)[0]) for _ in waits(6))
    note(f"status {out['status_ms']:.0f} ms, scrape {out['scrape_ms']:.0f} ms")
    for kind, ike in [("child", False), ("ike", True)]:
        sent, cpu = retransmits(both), active.cpu()
        rate, refused = rekey_all(active, ike)
        out[f"rekey_{kind}_per_s"] = rate
        out[f"rekey_{kind}_refused"] = refused
        out[f"rekey_{kind}_cpu_ms"] = 1000 * (active.cpu() - cpu) / TUNNELS
        out[f"rekey_{kind}_retransmits"] = retransmits(both) - sent
        note(f"rekey {kind}: {rate:.0f}/s, {refused} refused")
        if active.can("rekey", "--all"):
            took = active.control("rekey", "--all", "--timeout", "5m", *(["--ike"] if ike else []))
            out[f"rekey_all_{kind}_per_s"] = 1000 * TUNNELS / took
            note(f"rekey --all {kind}: {1000 * TUNNELS / took:.0f}/s")
    # What a rekey leaves behind for five seconds is not idleness.
    time.sleep(8)
    for daemon, part in zip(both, idle_parts(both)):
        out[f"idle_{daemon.host}"] = part
    out["idle_cpu_percent"] = out["idle_gwa"]["cpu_percent"]
    out["end_active_s"] = active.end()
    note(f"active side ended in {out['end_active_s']:.2f} s")
    out["end_passive_s"] = passive.end()
    note(f"passive side ended in {out['end_passive_s']:.2f} s; {time.perf_counter() - began:.0f} s in all")
    print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in out.items()}))


def waits(times):
    for _ in range(times):
        yield
        time.sleep(1)


main()
