#!/usr/bin/env bash
# A policy whose template names an SPI that no state has makes the first packet take that SPI: for half a minute the SA that
# was meant cannot be added.
#
# One expects a template with an SPI to wait for just that state: packets are dropped until somebody adds it. But for the first
# packet the kernel asks key managers for a state (acquire) and keeps a larval one meanwhile, and that has the SPI of the
# template (xfrm_state_find, xfrm_init_tempstate). ALLOCSPI of that SPI and NEWSA with it are refused then (EEXIST), until
# net.core.xfrm_acq_expires has passed; UPDSA makes the larval state the real one. Without a listener for acquires there is no
# larval state, and nobody is in the way: so it works by hand and fails beside a daemon.
#
# Seen with Linux 6.18 and 7.2: with a listener the SPI is taken after one packet, and the next number is free; without one it is free.
#
# usage: findings/larval-state-takes-the-spi.sh      needs root, iproute2, python3, unshare, a kernel with XFRM
set -euo pipefail
[ "$(id -u)" = 0 ] || { echo "needs root" >&2; exit 77; }
uname -r
ip -V
exec unshare --net bash -euo pipefail -c '
echo 2 >/proc/sys/net/core/xfrm_acq_expires
ip link add va type veth peer name vb
ip link set va up
ip link set vb up
ip addr add 192.0.2.1/24 dev va
ip neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev va
ip route add 10.2.0.0/16 via 192.0.2.2
if ! ip xfrm policy add src 0.0.0.0/0 dst 10.2.0.0/16 dir out tmpl src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x12345678 reqid 7 \
    mode tunnel 2>/dev/null; then echo "no XFRM" >&2; exit 77; fi
send() {
    python3 -c "
import socket
try: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b\"x\", (\"10.2.0.1\", 7000))
except OSError as e: print(\"  send:\", e.strerror)"
}
spi_of_states() { ip xfrm state | grep -c "spi 0x12345678" || true; }
is_free() { # SPI
    local got
    got=$(ip xfrm state allocspi src 192.0.2.1 dst 192.0.2.2 proto esp reqid 9 mode tunnel min $1 max $1 2>/dev/null) || true
    if [[ $got == *"spi $1"* ]]; then echo yes; else echo no; fi
}
send
alone=$(spi_of_states)
ip xfrm monitor acquire >/dev/null &
monitor=$!
for _ in $(seq 50); do grep -q "^ *[0-9a-f]* *6 *$monitor " /proc/net/netlink && break; sleep 0.1; done
send
larval=$(spi_of_states)
taken=$(is_free 0x12345678)
next=$(is_free 0x12345679)
kill $monitor
sleep 4
later=$(spi_of_states)
echo "states with the SPI: $alone without a listener, $larval with one, $later later; the SPI is free: $taken, the next one: $next"
[[ $alone$larval$later$taken$next == 010noyes ]] || { echo "changed" >&2; exit 1; }
'
