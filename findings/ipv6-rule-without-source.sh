#!/usr/bin/env bash
# A routing rule "from 0.0.0.0/32" catches IPv4 look-ups without a source. "from ::/128" catches no IPv6 look-up.
#
# One expects both families to compare the unspecified source with the rule's prefix. IPv6 does not look at source prefixes
# at all while a look-up has no source (fib6_rule_match, net/ipv6/fib6_rules.c), unless the rule has FIB_RULE_FIND_SADDR,
# which ip(8) cannot set. So a rule that shall guard packets of unbound sockets works for IPv4 only.
#
# Seen with Linux 6.18 and iproute2 6.1:
#   IPv4: 203.0.113.9 dev lo table 777 …
#   IPv6: 2001:db8:9::9 from :: via 2001:db8::2 dev va …     (not table 777)
#
# usage: findings/ipv6-rule-without-source.sh      needs root, iproute2, unshare
set -euo pipefail
[ "$(id -u)" = 0 ] || { echo "needs root" >&2; exit 77; }
uname -r
ip -V
exec unshare --net bash -euo pipefail -c '
ip link set lo up
ip link add va type veth peer name vb
ip link set va up
ip link set vb up
ip addr add 192.0.2.1/24 dev va
ip addr add 2001:db8::1/64 dev va nodad
ip route add default via 192.0.2.2
ip -6 route add default via 2001:db8::2
ip route add 203.0.113.0/24 dev lo table 777
ip -6 route add 2001:db8:9::/48 dev lo table 777
ip rule add from 0.0.0.0/32 lookup 777 priority 100
ip -6 rule add from ::/128 lookup 777 priority 100
four=$(ip route get 203.0.113.9 | head -1)
six=$(ip -6 route get 2001:db8:9::9 | head -1)
echo "IPv4: $four"
echo "IPv6: $six"
case $four in *"table 777"*) ;; *) echo "IPv4 changed" >&2; exit 1 ;; esac
case $six in *"table 777"*) echo "IPv6 changed: ::/128 matches now" >&2; exit 1 ;; esac
'
