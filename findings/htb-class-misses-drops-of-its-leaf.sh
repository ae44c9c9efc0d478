#!/usr/bin/env bash
# What a token bucket below an HTB class drops of a superpacket, neither the class nor the root counts.
#
# One expects "dropped" of a class, and of the root qdisc, to be what its leaf drops, as it is for single packets: the leaf refuses one, and
# each above counts that. But `tbf` cuts a superpacket that is larger than its burst into segments and queues as many as it has room for; if one
# of them found room it answers that all is well, and counts the others for itself alone (tbf_segment, net/sched/sch_tbf.c). So a class shows
# no drop while nine tenths of the traffic go: who monitors it has to read the leaf.
#
# Seen with Linux 6.18: single packets: leaf, class and root say the same; trains of 20 datagrams (UDP_SEGMENT): leaf 3,765 of 4,000,
# class 0, root 0.
#
# usage: findings/htb-class-misses-drops-of-its-leaf.sh      needs root, iproute2, python3, unshare, a kernel with sch_htb and sch_tbf
set -euo pipefail
[ "$(id -u)" = 0 ] || { echo "needs root" >&2; exit 77; }
uname -r
tc -V
exec unshare --net bash -euo pipefail -c '
ip link add va type veth peer name vb
for device in va vb; do [ ! -e /proc/sys/net/ipv6/conf/$device ] || echo 1 >/proc/sys/net/ipv6/conf/$device/disable_ipv6; done
ip link set va up
ip link set vb up
ip addr add 192.0.2.1/24 dev va
ip neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev va
queues() {
    tc qdisc delete dev va root 2>/dev/null || true
    tc qdisc add dev va root handle 1: htb default 1 &&
        tc class add dev va parent 1: classid 1:1 htb rate 5mbit &&
        tc qdisc add dev va parent 1:1 handle 2: tbf rate 4mbit burst 3000 limit 30000
}
if ! queues; then echo "no sch_htb or sch_tbf" >&2; exit 77; fi
send() { # TRAINS DATAGRAMS: so many of 1,000 octets in each
    python3 -c "
import socket, sys, time
trains, datagrams = int(sys.argv[1]), int(sys.argv[2])
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect((\"192.0.2.2\", 9))
if datagrams > 1:
    s.setsockopt(socket.IPPROTO_UDP, 103, 1000)  # UDP_SEGMENT
for n in range(trains):
    s.send(bytes(1000 * datagrams))
    if n % (20 // datagrams) == 0:
        time.sleep(0.002)" $1 $2
}
dropped() { # leaf, class, root
    of() { sed -n "s/.*(dropped \([0-9]*\),.*/\1/p" | head -1; }
    echo "$(tc -s qdisc show dev va | sed -n "/qdisc tbf/,\$p" | of) $(tc -s class show dev va classid 1:1 | of) $(tc -s qdisc show dev va | of)"
}
queues
send 4000 1
single=$(dropped)
queues
send 200 20
trains=$(dropped)
echo "dropped by leaf, class, root: of 4,000 single packets $single, of 200 trains of 20 $trains"
read -r leaf class root <<<"$single"
[[ $leaf -gt 0 && $class == "$leaf" && $root == "$leaf" ]] || { echo "changed" >&2; exit 1; }
read -r leaf class root <<<"$trains"
[[ $leaf -gt 2000 && $class == 0 && $root == 0 ]] || { echo "changed" >&2; exit 1; }
'
