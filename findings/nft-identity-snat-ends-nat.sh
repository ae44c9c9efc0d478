#!/usr/bin/env bash
# An identity source translation in one NAT chain keeps the connection from all later NAT chains, those of iptables too.
#
# One expects `snat ip to ip saddr` to change nothing, so that a later masquerade still applies; an `accept` in the first
# chain, which looks like the way to exempt a connection, exempts nothing: the chains of other tables are asked all the
# same. But the kernel asks NAT chains, in the order of priorities, only until one has bound the connection
# (nf_nat_inet_fn, net/netfilter/nf_nat_core.c), and a binding to the address that it has is a binding.
#
# Seen with Linux 6.18, nftables 1.0.6, iptables 1.8.9: "accept" arrives as 192.0.2.1, "snat ip to ip saddr" as 10.1.0.1,
# both with nft and with iptables-nft; iptables-legacy the same where the kernel has it.
#
# usage: findings/nft-identity-snat-ends-nat.sh      needs root, nftables, iptables, iproute2, python3, unshare
set -euo pipefail
[ "$(id -u)" = 0 ] || { echo "needs root" >&2; exit 77; }
uname -r
nft --version
iptables-nft --version
exec unshare --net bash -euo pipefail -c '
ip link set lo up
ip link add va type veth peer name vb
unshare --net sleep 60 & peer=$!
trap "kill $peer" EXIT
sleep 0.3
ip link set vb netns $peer
there() { nsenter --net=/proc/$peer/ns/net "$@"; }
ip addr add 192.0.2.1/24 dev va
ip addr add 10.1.0.1/32 dev va
ip link set va up
there ip addr add 192.0.2.2/24 dev vb
there ip link set vb up
there ip route add 10.1.0.0/16 dev vb
arrives() { # the source as the peer sees it
    there timeout 5 python3 -c "
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind((\"192.0.2.2\", 7000)); print(s.recvfrom(9)[1][0])" &
    local receiver=$!
    sleep 0.5
    python3 -c "
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind((\"10.1.0.1\", 0)); s.sendto(b\"x\", (\"192.0.2.2\", 7000))"
    wait $receiver
}
masquerade_nft() { nft "add table ip late; add chain ip late post { type nat hook postrouting priority 100; }; add rule ip late post masquerade"; }
masquerade_iptables() { iptables-nft -t nat -A POSTROUTING -o va -j MASQUERADE; }
masquerade_legacy() { iptables-legacy -t nat -A POSTROUTING -o va -j MASQUERADE; }
for later in nft iptables legacy; do
    if ! masquerade_$later 2>/dev/null; then echo "$later: not on this kernel"; continue; fi
    nft "add table ip early; add chain ip early post { type nat hook postrouting priority 10; }; add rule ip early post accept"
    accepted=$(arrives)
    nft "flush chain ip early post; add rule ip early post snat ip to ip saddr"
    bound=$(arrives)
    echo "$later: accept: $accepted, snat ip to ip saddr: $bound"
    [ "$accepted" = 192.0.2.1 ] && [ "$bound" = 10.1.0.1 ] || { echo "changed" >&2; exit 1; }
    nft flush ruleset
    iptables-legacy -t nat -F 2>/dev/null || true
done
'
