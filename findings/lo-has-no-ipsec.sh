#!/usr/bin/env bash
# A route by `lo` is exempt from IPsec policies: a packet that it takes is not blocked and not protected.
#
# One expects an outbound policy to be asked about every packet, so that a route "10.2.0.0/16 dev lo src 10.1.0.1", whose
# only purpose is to give unbound sockets an inner source, would be as good as one by any other device: the transformation
# looks the outer route up by itself. But `lo` has net.ipv4.conf.lo.disable_xfrm=1 from the start
# (inetdev_event, net/ipv4/devinet.c), and routes by it skip the policies.
#
# Seen with Linux 6.18: by a veth: blocked (the policy counts an error), by lo: not blocked (no error counted).
#
# usage: findings/lo-has-no-ipsec.sh      needs root, iproute2, python3, unshare, a kernel with XFRM_STATISTICS
set -euo pipefail
[ "$(id -u)" = 0 ] || { echo "needs root" >&2; exit 77; }
uname -r
ip -V
exec unshare --net bash -euo pipefail -c '
[ -e /proc/self/net/xfrm_stat ] || { echo "no XFRM_STATISTICS" >&2; exit 77; }
ip link set lo up
ip link add va type veth peer name vb
ip link set va up
ip link set vb up
ip addr add 10.1.0.1/32 dev va
ip xfrm policy add dir out src 10.1.0.0/16 dst 10.2.0.0/16 action block
blocked() { # DEVICE: how many packets the policy blocked
    local before after
    ip route replace 10.2.0.0/16 dev $1 src 10.1.0.1
    before=$(awk "/XfrmOutPolBlock/ { print \$2 }" /proc/self/net/xfrm_stat)
    python3 -c "
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
try: s.sendto(b\"x\", (\"10.2.0.1\", 7000))
except OSError as e: print(\"  send:\", e.strerror)" >&2
    after=$(awk "/XfrmOutPolBlock/ { print \$2 }" /proc/self/net/xfrm_stat)
    echo $((after - before))
}
veth=$(blocked va)
lo=$(blocked lo)
echo "disable_xfrm of lo: $(cat /proc/sys/net/ipv4/conf/lo/disable_xfrm); blocked by va: $veth, by lo: $lo"
[ "$veth" -gt 0 ] && [ "$lo" = 0 ] || { echo "changed" >&2; exit 1; }
'
