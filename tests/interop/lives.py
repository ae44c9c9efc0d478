"""A gateway lives many times under a stream of packets each way: it is handed over and started again, and killed and started
again. What that costs is measured on the hosts behind the gateways and on the router between them.

    lives.py LAB LAB_DIR CYGNET PLANE TIMES RATE   TIMES handovers and TIMES kills of gwa, whose peer runs; RATE packets a
                                                   second each way. Prints one JSON object; exit code 1 if it cost too much
    lives.py send FROM TO PORT RATE FILE           numbered datagrams until SIGTERM; when each was sent goes to the file
    lives.py take AT PORT FILE                     takes them until SIGTERM; which came goes to the file
"""

import array
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time

SO_RCVBUFFORCE = 33
# Longest outage of the gateway that carries packets itself, in milliseconds, of 95 of 100 lives.
OUTAGE_MS = float(os.environ.get("LIVES_OUTAGE_MS", "300"))


class Ended(Exception):
    pass


def on_term(*_):
    raise Ended


def send(source, target, port, rate, file):
    sent = array.array("d")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind((source, 0))
        begin = time.monotonic()
        try:
            while True:
                time.sleep(max(0, begin + len(sent) / rate - time.monotonic()))
                sent.append(time.monotonic())
                try:
                    s.sendto(struct.pack(">I", len(sent) - 1) + bytes(60), (target, port))
                except OSError:
                    pass  # refused on this host: lost like any other
        except Ended:
            pass
    with open(file, "wb") as f:
        sent.tofile(f)


def take(at, port, file):
    seen = array.array("I")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind((at, port))
        s.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
        try:
            while True:
                seen.append(struct.unpack_from(">I", s.recv(2048))[0])
        except Ended:
            pass
    with open(file, "wb") as f:
        seen.tofile(f)


def read(file, kind):
    values = array.array(kind)
    with open(file, "rb") as f:
        values.frombytes(f.read())
    return values


class Lives:
    def __init__(self, lab, folder, cygnet, plane, times, rate):
        self.lab, self.folder, self.cygnet, self.plane = lab, folder, cygnet, plane
        self.times, self.rate = int(times), int(rate)
        self.daemon = None
        self.others = []
        self.broken = []

    def ns(self, host, *command, **more):
        return subprocess.Popen(["ip", "netns", "exec", f"{self.lab}-{host}", *command], **more)

    def ctl(self, *args):
        command = [self.cygnet, "--control", f"{self.folder}/gwa.sock", *args]
        return subprocess.run(command, capture_output=True, text=True)

    def status(self):
        answer = self.ctl("status", "--json")
        return json.loads(answer.stdout)["tunnels"][0] if answer.stdout else None

    def is_up(self):
        status = self.status()
        return bool(status) and status["state"] == "up"

    def until(self, true, seconds, what):
        end = time.monotonic() + seconds
        while not true():
            if time.monotonic() > end:
                self.broken.append(what)
                return False
            time.sleep(0.02)
        return True

    def start(self):
        with open(f"{self.folder}/gwa.log", "ab") as log:
            self.daemon = self.ns("gwa", self.cygnet, "run", "--config", f"{self.folder}/gwa.yaml",
                                  stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def spis(self):
        status = self.status()
        ike = status and status["ike"]
        child = status["children"][0] if status and status["children"] else {}
        return (ike and ike["spi_i"], child.get("spi_in"), child.get("spi_out"))

    def helper(self, host, *args):
        self.others.append(self.ns(host, *args, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    def stream(self, name, source, at, target, to, port):
        me = [sys.executable, __file__]
        self.helper(to, *me, "take", target, str(port), f"{self.folder}/{name}.taken")
        time.sleep(0.5)
        self.helper(source, *me, "send", at, target, str(port), str(self.rate), f"{self.folder}/{name}.sent")

    def life(self, kind, n):
        """One end and the start after it; gives when it began, and when the daemon answered again."""
        what = f"{kind} {n}"
        before = self.spis()
        began = time.monotonic()
        if kind == "handover":
            answer = self.ctl("handover")
            if answer.returncode != 0:
                self.broken.append(f"{what}: {answer.stderr.strip()}")
        else:
            self.daemon.kill()
        self.daemon.wait()
        self.start()
        self.until(self.is_up, 20, f"{what}: not up again")
        ready = time.monotonic()
        renews = kind == "kill" and self.plane == "userspace"
        if renews:
            self.until(lambda: self.spis()[1] not in (None, before[1]), 20, f"{what}: no new keys")
        # Inbound SAs that were replaced stay for some seconds.
        time.sleep(0.7)
        after = self.spis()
        if after[0] != before[0] or (not renews and after != before):
            self.broken.append(f"{what}: SPIs were {before}, are {after}")
        return (kind, began, ready)

    def run(self):
        self.start()
        self.until(self.is_up, 30, "not up at the start")
        capture = f"{self.folder}/lives.pcap"
        self.helper("wan", "tcpdump", "-ni", "wan-gwa", "-s", "96", "-B", "32768", "-w", capture, "-U", "udp or esp")
        time.sleep(1)
        self.stream("there", "vpc", "10.1.0.2", "10.2.0.2", "idc", 7001)
        self.stream("back", "idc", "10.2.0.2", "10.1.0.2", "vpc", 7002)
        time.sleep(1)
        lives = []
        for kind in ("handover", "kill"):
            for n in range(self.times):
                lives.append(self.life(kind, n))
        time.sleep(1)
        # Senders first, and takers when what was sent has arrived.
        capturing, *streams = self.others
        for process in streams[1::2]:
            process.terminate()
            process.wait()
        time.sleep(0.5)
        for process in streams[0::2]:
            process.terminate()
            process.wait()
        capturing.terminate()
        capturing.wait()
        self.others = []
        self.report(lives, capture)

    def report(self, lives, capture):
        figures = {"plane": self.plane, "handovers": self.times, "kills": self.times, "rate": self.rate}
        away = {"handover": [], "kill": []}
        for kind, began, ready in lives:
            away[kind].append((ready - began) * 1000)
        outages = {"handover": [0.0] * self.times, "kill": [0.0] * self.times}
        for name in ("there", "back"):
            sent, taken = read(f"{self.folder}/{name}.sent", "d"), set(read(f"{self.folder}/{name}.taken", "I"))
            lost = [n for n in range(len(sent)) if n not in taken]
            figures[f"sent_{name}"], figures[f"lost_{name}"] = len(sent), len(lost)
            begins = [began for _, began, _ in lives] + [float("inf")]
            at = {"handover": 0, "kill": 0}
            for (kind, began, _), end in zip(lives, begins[1:]):
                gone = [n for n in lost if began - 0.1 <= sent[n] < end - 0.1]
                outage = (sent[gone[-1]] - sent[gone[0]]) * 1000 + 1000 / self.rate if gone else 0.0
                outages[kind][at[kind]] = max(outages[kind][at[kind]], outage)
                at[kind] += 1
        for kind, values in outages.items():
            values.sort()
            away[kind].sort()
            if values:
                figures[f"{kind}_outage_ms"] = {"median": round(values[len(values) // 2]),
                                                "p95": round(values[(len(values) * 95 - 1) // 100]),
                                                "longest": round(values[-1])}
                figures[f"{kind}_away_ms_median"] = round(away[kind][len(away[kind]) // 2])
        esp, twice, negotiations = look(capture)
        figures.update(esp_packets=esp, esp_numbers_twice=twice, negotiations=negotiations)
        if negotiations:
            self.broken.append(f"{negotiations} messages of new negotiations")
        if twice:
            self.broken.append(f"{twice} ESP packets with an SPI and number seen before")
        if esp < figures["sent_there"]:
            self.broken.append("the capture is not whole")
        if self.plane == "kernel":
            for name in ("there", "back"):
                if figures[f"lost_{name}"]:
                    self.broken.append(f"{figures[f'lost_{name}']} packets lost {name}")
        else:
            for kind in outages:
                if figures[f"{kind}_outage_ms"]["p95"] > OUTAGE_MS:
                    self.broken.append(f"outage of {figures[f'{kind}_outage_ms']['p95']} ms after {kind}")
        print(json.dumps({"ok": not self.broken, "figures": figures, "broken": self.broken}))

    def end(self):
        for process in self.others:
            process.terminate()
            process.wait()
        if self.daemon:
            self.daemon.terminate()
            self.daemon.wait()


def look(capture):
    """ESP packets, how many of them repeat an SPI and a number, and messages of IKE_SA_INIT and IKE_AUTH."""
    seen, esp, twice, negotiations = set(), 0, 0, 0
    with open(capture, "rb") as f:
        data = f.read()
    at = 24
    while at + 16 <= len(data):
        kept = struct.unpack_from("<I", data, at + 8)[0]
        frame = data[at + 16 : at + 16 + kept]
        at += 16 + kept
        if len(frame) < 34 or frame[12:14] != b"\x08\x00":
            continue
        head = 14 + (frame[14] & 15) * 4
        protocol, source = frame[23], frame[26:30]
        body = None
        if protocol == 50:
            body = frame[head:]
        elif protocol == 17:
            ports = struct.unpack_from(">HH", frame, head)
            text = frame[head + 8 :]
            if 4500 in ports and len(text) >= 8 and text[:4] != b"\0\0\0\0":
                body = text
            elif 500 in ports or 4500 in ports:
                message = text[4:] if 4500 in ports else text
                if len(message) >= 28 and message[18] in (34, 35):
                    negotiations += 1
        if body and len(body) >= 8:
            esp += 1
            name = (source, body[:8])
            twice += name in seen
            seen.add(name)
    return esp, twice, negotiations


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, on_term)
    if sys.argv[1] == "send":
        send(sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5]), sys.argv[6])
    elif sys.argv[1] == "take":
        take(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else:
        lives = Lives(*sys.argv[1:7])
        try:
            lives.run()
        finally:
            lives.end()
        sys.exit(1 if lives.broken else 0)
