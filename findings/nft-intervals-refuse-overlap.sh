#!/usr/bin/env bash
# A set of concatenated intervals refuses an element that overlaps another one; `auto-merge` does not help.
#
# One expects a set with `flags interval` to hold 10.1.0.0/16 . 10.2.0.0/16 beside 10.1.0.0/24 . 10.2.0.0/24, as routing
# tables and IPsec policies do, or at least `auto-merge` to join them, as in sets of one field. The kernel refuses the
# second one: such sets map each packet to one element (nft_set_pipapo, net/netfilter/nft_set_pipapo.c). Sets without
# intervals, one for each pair of prefix lengths, hold both.
#
# Seen with Linux 6.18 and nftables 1.0.6:
#   second element, without and with auto-merge: Error: Could not process rule: File exists
#
# usage: findings/nft-intervals-refuse-overlap.sh      needs root, nftables, unshare
set -euo pipefail
[ "$(id -u)" = 0 ] || { echo "needs root" >&2; exit 77; }
uname -r
nft --version
exec unshare --net bash -euo pipefail -c '
for option in "" "auto-merge;"; do
    nft "add table inet t; add set inet t pairs { type ipv4_addr . ipv4_addr; flags interval; $option }"
    nft "add element inet t pairs { 10.1.0.0/16 . 10.2.0.0/16 }"
    if refusal=$(nft "add element inet t pairs { 10.1.0.0/24 . 10.2.0.0/24 }" 2>&1); then
        echo "changed: the overlapping element was taken ($option)" >&2
        exit 1
    fi
    echo "${option:-without auto-merge;} ${refusal%%add*}"
    nft delete table inet t
done
nft "add table inet t; add set inet t wide { type ipv4_addr . ipv4_addr; }; add set inet t narrow { type ipv4_addr . ipv4_addr; }"
nft "add element inet t wide { 10.1.0.0 . 10.2.0.0 }; add element inet t narrow { 10.1.0.0 . 10.2.0.0 }"
echo "one set for each pair of prefix lengths: both are held"
'
