#!/usr/bin/env bash
# `ip rule flush` gives up in the middle if another program removes one of the rules meanwhile, and leaves the rest.
#
# First guess: a flush ends with nothing left, and a rule that is gone already is no reason to stop, as with `nft flush` and
# `ip xfrm policy flush`, which are one request that the kernel carries out. Seen: `ip rule flush` lists rules and removes
# one after the other by requests of its own. The first one that somebody else has removed since it was listed is answered by
# ENOENT; ip ends with exit code 255, and the rules behind it stay. Beside a daemon that manages rules (a VPN gateway, a
# network manager) a script must look at the exit code and flush again until it is 0.
#
# Needs root (a network namespace of its own) and iproute2. Exit code 0: as described.
set -euo pipefail
if [[ ${1:-} != inside ]]; then
    ip -V
    exec unshare --net "$0" inside
fi
ip link set lo up
errors=$(mktemp)
trap 'rm -f "$errors"' EXIT
for ((try = 1; try <= 200; try++)); do
    for ((n = 0; n < 400; n++)); do echo "rule add priority $((1000 + n)) lookup 77 protocol 201"; done | ip -batch -
    # Somewhere in the list, while it is worked off.
    ip rule del priority $((1020 + try)) 2>/dev/null &
    code=0
    ip rule flush protocol 201 2>"$errors" || code=$?
    wait
    left=$(ip rule | grep -c '^1[0-9]*:.*lookup 77' || true)
    if ((code != 0 && left > 0)); then
        echo "attempt $try: exit code $code ($(head -1 "$errors")), $left of 400 rules are left"
        ip rule flush protocol 201
        echo "again: exit code 0, $(ip rule | grep -c 'lookup 77' || true) are left"
        exit 0
    fi
    until ip rule flush protocol 201 2>/dev/null; do :; done
done
echo "200 attempts, and no flush stopped halfway"
exit 1
