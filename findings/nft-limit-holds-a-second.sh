#!/usr/bin/env bash
# "limit rate 100 kbytes/second burst 2 kbytes" of nftables lets 102 kilobytes pass at once: the burst is added to a second, not to nothing.
#
# One expects of a token bucket that its depth is the burst, as it is of `tc ... police rate 100kbps burst 2kb` and `tbf`, and as it is of nftables'
# own limits by packets. Of limits by octets the bucket holds what the rate gives in one unit of time *and* the burst (nft_limit_init,
# net/netfilter/nft_limit.c), and the shortest unit is a second. So such a limit cannot hold within less than a second, whatever burst is written; whoever was idle for a while sends
# twice the rate in the next second, and offering a little more than the rate goes unnoticed for long: a tenth more for ten seconds.
#
# Seen with Linux 6.18, nftables 1.0.6: of 300 datagrams of 1,000 octets (1,028 with headers), sent in some milliseconds after a pause, 100 kbytes/second
# with a burst of 2 kbytes let 101 pass; 100 packets/second with a burst of 2 packets let 2 pass.
#
# usage: findings/nft-limit-holds-a-second.sh      needs root, iproute2, nftables, python3, unshare
set -euo pipefail
[ "$(id -u)" = 0 ] || { echo "needs root" >&2; exit 77; }
uname -r
nft --version
exec unshare --net bash -euo pipefail -c '
ip link set lo up
nft -f - <<NFT
table ip t {
    counter by_octets { }
    counter by_packets { }
    chain out {
        type filter hook output priority 0; policy accept;
        udp dport 9001 limit rate 100 kbytes/second burst 2 kbytes counter name by_octets accept
        udp dport 9002 limit rate 100/second burst 2 packets counter name by_packets accept
        udp dport 9001-9002 drop
    }
}
NFT
passed() { nft list counter ip t "$1" | sed -n "s/.*packets \([0-9]*\) bytes.*/\1/p"; }
send() {
    python3 -c "
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for n in range(300):
    try:
        s.sendto(bytes(1000), (\"127.0.0.1\", int(sys.argv[1])))
    except PermissionError:
        pass" "$1"
}
sleep 2
send 9001
send 9002
octets=$(passed by_octets) packets=$(passed by_packets)
echo "of 300 datagrams of 1,000 octets passed: 100 kbytes/second burst 2 kbytes: $octets; 100 packets/second burst 2 packets: $packets"
# What the rate gives meanwhile may come on top on a busy machine.
[[ $octets -ge 95 && $octets -le 140 ]] || { echo "changed: by octets" >&2; exit 1; }
[[ $packets -ge 2 && $packets -le 20 ]] || { echo "changed: by packets" >&2; exit 1; }
'
