#!/usr/bin/env bash
# Octets of a train of UDP datagrams (UDP_SEGMENT): tc counts the headers of each datagram, an interface only those of the first.
#
# One expects the octet counters of an interface to be what crossed it, and to agree with those of the queue in front of it. A train
# that an interface takes whole (tx-udp-segmentation: veth, and cards that cut by themselves) is one packet to ip -s link, to
# /sys/class/net/*/statistics and to nftables counters, at the sender and at the receiver; to a qdisc it is as many octets as its
# datagrams will be (qdisc_pkt_len_init() in net/core/dev.c adds the headers). So a shaper that keeps its rate exactly looks 2.7 % too slow to
# whoever measures at the next hop by octets, with datagrams of 1,500, and 32 % with those of 100. Where the interface does not cut, all agree.
#
# Seen with Linux 6.18 and iproute2 6.1, 100 trains of 40 datagrams of 1,000 octets over veth: tc 4,168,000 (1,042 for each datagram), both
# interfaces 4,004,200, nftables (without Ethernet) 4,002,800. With tx-udp-segmentation off: 4,168,000, 4,168,000 and 4,112,000.
#
# usage: findings/gso-trains-count-one-header.sh      needs root, iproute2, ethtool, nftables, python3
set -euo pipefail
[ "$(id -u)" = 0 ] || { echo "needs root" >&2; exit 77; }
uname -r
a=train-a-$$ b=train-b-$$
clean() {
    ip netns del "$a" 2>/dev/null || true
    ip netns del "$b" 2>/dev/null || true
}
trap clean EXIT
ip netns add "$a"
ip netns add "$b"
ip link add out netns "$a" type veth peer name in netns "$b"
# Nothing but the trains: no IPv6, and the neighbour is known.
for n in "$a" "$b"; do ip netns exec "$n" sysctl -qw net.ipv6.conf.all.disable_ipv6=1; done
ip -n "$a" address add 192.0.2.1/24 dev out
ip -n "$b" address add 192.0.2.2/24 dev in
ip -n "$b" link set in up
ip -n "$a" link set out up
ip -n "$a" neigh replace 192.0.2.2 dev out lladdr "$(ip netns exec "$b" cat /sys/class/net/in/address)"
ip -n "$b" neigh replace 192.0.2.1 dev in lladdr "$(ip netns exec "$a" cat /sys/class/net/out/address)"
ip netns exec "$b" nft 'add table netdev t; add chain netdev t c { type filter hook ingress device in priority 0; }; add rule netdev t c udp dport 9 counter'

octets() { # what tc, the sender's interface, the receiver's and nftables have counted
    ip netns exec "$a" tc -s qdisc show dev out | sed -n 's/ Sent \([0-9]*\) bytes.*/\1/p'
    ip netns exec "$a" cat /sys/class/net/out/statistics/tx_bytes
    ip netns exec "$b" cat /sys/class/net/in/statistics/rx_bytes
    ip netns exec "$b" nft list table netdev t | sed -n 's/.*bytes \([0-9]*\).*/\1/p'
}

round() { # on|off
    ip netns exec "$a" ethtool -K out tx-udp-segmentation "$1"
    # A new one counts from 0.
    ip netns exec "$a" tc qdisc replace dev out root pfifo limit 10000
    local before after
    mapfile -t before < <(octets)
    ip netns exec "$a" python3 -c '
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_UDP, 103, 1000)  # UDP_SEGMENT
for _ in range(100):
    s.sendto(bytes(40 * 1000), ("192.0.2.2", 9))'
    sleep 1
    mapfile -t after < <(octets)
    ip netns exec "$a" tc qdisc del dev out root
    for i in 0 1 2 3; do printf '%s ' $((after[i] - before[i])); done
}

whole=$(round on) cut=$(round off)
echo "tc, sender, receiver, nftables - trains whole: $whole- cut: $cut"
[[ $whole == "4168000 4004200 4004200 4002800 " && $cut == "4168000 4168000 4168000 4112000 " ]] || { echo "changed" >&2; exit 1; }
