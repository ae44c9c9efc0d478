#!/usr/bin/env bash
# "ping -i 0.001" sends a thousand requests a second while they are answered, and a hundred while they are not.
#
# One expects that the interval is the interval, and counts lost packets to know how long a way was closed: 50 of 1,000 a second are 50 ms. But when the
# next request is due in less than ten milliseconds and one is not answered yet, ping waits for ten milliseconds; only when nothing is on the way
# it waits for the moment itself, by looking at the clock again and again (main_loop, ping/ping_common.c). So it sends the less the more is lost: a way that is closed for half a
# second costs 50 packets, not 500, and a way that takes longer than the interval never sees more than some hundred a second. The looking takes up to a whole processor:
# of a test of two gateways with 1,000 requests a second, 7 of 11 seconds of processor time were ping's.
#
# Seen with iputils 20221126 (Debian 12, 3:20221126-1+deb12u1), Linux 6.18: 300 requests with "-i 0.001" took 0.3 to 0.7 s where they were answered, and
# 3.1 to 3.3 s where nobody answered.
#
# usage: findings/ping-slows-down-while-answers-are-missing.sh      needs root, iproute2, apt, unshare, python3
set -euo pipefail
[ "$(id -u)" = 0 ] || { echo "needs root" >&2; exit 77; }
VERSION=3:20221126-1+deb12u1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
(cd "$work" && apt-get download -qq -o APT::Sandbox::User=root "iputils-ping=$VERSION" && dpkg -x iputils-ping_*.deb root)
uname -r
"$work/root/bin/ping" -V | head -n 1
unshare --net bash -euo pipefail -c '
ip link set lo up
ip link add near type veth peer name far
ip address add 192.0.2.1/24 dev near
ip neighbour add 192.0.2.2 lladdr 02:00:00:00:00:02 dev near
ip link set near up
ip link set far up
exec python3 - "$1"' slows "$work/root/bin/ping" <<'PY'
import subprocess, sys, time

def seconds(target):
    began = time.monotonic()
    done = subprocess.run([sys.argv[1], "-q", "-i", "0.001", "-c", "300", "-W", "0.1", target], capture_output=True, text=True)
    elapsed = time.monotonic() - began
    counts = next(line for line in done.stdout.splitlines() if "transmitted" in line)
    print(f"{target}: {elapsed:.2f} s for {counts}")
    return elapsed

# On a busy machine the first may take longer; the second cannot be shorter.
sys.exit(0 if seconds("127.0.0.1") < 2.5 < seconds("192.0.2.2") else "changed")
PY
