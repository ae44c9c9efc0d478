"""Reads an exporter again and again until it is interrupted: tunnels and children stay up, what is counted of a tunnel never
goes back. A daemon that does not answer for a moment is between two lives; what it says afterwards still counts.

usage: watch.py URL
"""

import re
import signal
import sys
import time
import urllib.request

stopped = []
signal.signal(signal.SIGINT, lambda *_: stopped.append(True))
SAMPLE = re.compile(r"^(cygnet_\w+\{[^}]*tunnel=[^}]*\}) (\S+)$", re.M)
highest, faults, reads, silent, seen_up = {}, [], 0, 0, False


def is_counter(series):
    return series.split("{", 1)[0].endswith("_total")


while not stopped:
    try:
        page = urllib.request.urlopen(sys.argv[1], timeout=5).read().decode()
    except OSError:
        silent += 1
        time.sleep(0.05)
        continue
    reads += 1
    samples = {series: float(value) for series, value in SAMPLE.findall(page)}
    up = [value for series, value in samples.items() if series.startswith(("cygnet_tunnel_up", "cygnet_child_up"))]
    if up and min(up) == 1:
        seen_up = True
    elif seen_up:
        faults.append(f"down, read {reads}: " + str([s for s, v in samples.items() if "_up{" in s and v != 1]))
    for series, value in samples.items():
        if is_counter(series):
            if value < highest.get(series, 0):
                faults.append(f"{series} went from {highest[series]} to {value}, read {reads}, silent {silent}")
            highest[series] = max(value, highest.get(series, 0))
    time.sleep(0.03)
rekeys = sum(v for s, v in highest.items() if s.startswith("cygnet_rekeys_total") and 'result="ok"' in s)
packets = sum(v for s, v in highest.items() if s.startswith("cygnet_sa_packets_total"))
print(f"{reads} reads, {silent} without an answer, {rekeys:.0f} rekeys, {packets:.0f} packets, {len(faults)} faults")
for fault in faults[:10]:
    print(fault)
sys.exit(1 if faults or reads < 50 or rekeys < 12 or packets < 100 or not silent else 0)
