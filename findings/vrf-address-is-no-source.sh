#!/usr/bin/env bash
# An address on an interface that is in a VRF cannot be the source of a route outside of it: "Invalid prefsrc address".
#
# We guessed that every address of a host is good as a route's source, as it is before the interface joins the VRF. But its
# local route moves to the VRF's table, and the kernel asks for it in the table of the new route and in the local one alone.
# Seen with Linux 7.2.7 (User-Mode Linux) and iproute2 6.1.0. Needs root and a kernel with VRF; 77 without.
set -euo pipefail

ns=finding-$$
ip netns add "$ns"
trap 'ip netns del "$ns"' EXIT
inside() { ip -n "$ns" "$@"; }
echo "Linux $(uname -r), $(ip -V)"
inside link add vrf-in type vrf table 88 2>/dev/null || { echo "this kernel has no VRF"; exit 77; }
inside link set vrf-in up
inside link add lan type veth peer name host
inside link set lan up
inside link set host up
inside addr add 10.1.0.1/24 dev lan
route=(10.2.0.0/16 dev lan src 10.1.0.1)

inside route add "${route[@]}" table 7 || { echo "changed: refused before the interface is in a VRF"; exit 1; }
inside route del "${route[@]}" table 7
inside link set lan master vrf-in
if said=$(inside route add "${route[@]}" table 7 2>&1); then
    echo "changed: the address is taken as a source outside of its VRF"
    exit 1
fi
echo "outside of the VRF: $said"
inside route add "${route[@]}" table 88 || { echo "changed: refused in the VRF's own table"; exit 1; }
echo "in the VRF's own table: taken"
