#!/usr/bin/env bash
# A connect() of a UDP socket, without a packet, makes Linux ask for the keys of an IPsec policy.
#
# First guess: XFRM asks its key managers (an acquire) when the first packet meets a policy that has no state. Seen: the
# look-up of the route that connect() makes is enough, and the acquire names the port of that connect(). Programs that connect a
# UDP socket to learn their source address cause one: ping of iputils does so with port 1025 before its first echo request, so
# that a key manager that puts "the packet's own selector first" (RFC 7296 section 2.9) asks the peer for UDP 1025, not ICMP.
#
# Needs root, iproute2, iputils-ping, python3. Exit code 0: as described.
set -euo pipefail

ns="finding-$$"
dir=$(mktemp -d)
cleanup() {
    kill "${monitor:-}" 2>/dev/null || true
    ip netns del "$ns" 2>/dev/null || true
    rm -rf "$dir"
}
trap cleanup EXIT
echo "kernel $(uname -r), $(ip -V), $(ping -V | head -n 1)"

ip netns add "$ns"
inside() { ip netns exec "$ns" "$@"; }
inside ip link set lo up
inside ip link add lan type veth peer name other
inside ip link set other up
inside ip address add 10.1.0.1/24 dev lan
inside ip link set lan up
inside ip route add default via 10.1.0.254
inside ip xfrm policy add src 10.1.0.0/24 dst 10.2.0.0/16 dir out \
    tmpl src 192.0.2.1 dst 192.0.2.2 proto esp mode tunnel

# Runs a command and prints the selectors of the acquires that it causes.
asked() {
    ip netns exec "$ns" stdbuf -oL ip xfrm monitor acquire >"$dir/events" 2>&1 &
    monitor=$!
    sleep 0.5
    "$@" >/dev/null 2>&1 || true
    sleep 0.5
    kill "$monitor"
    wait "$monitor" 2>/dev/null || true
    # Of an acquire, the line of the packet, not that of the policy.
    sed -n 's/^ *sel \(.*\)$/\1/p' "$dir/events" | grep proto || true
}

connect='import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("10.2.0.1", 4321))'
inside sh -c 'echo 1 >/proc/sys/net/core/xfrm_acq_expires'
of_connect=$(asked inside python3 -c "$connect")
sleep 2
of_ping=$(asked inside ping -c 1 -W 1 10.2.0.9)
echo "connect() alone: ${of_connect:-nothing}"
echo "ping:            ${of_ping:-nothing}"
[[ $of_connect == *"proto udp"*"dport 4321"* ]]
[[ $(head -n 1 <<<"$of_ping") == *"proto udp"*"dport 1025"* ]]
