#!/usr/bin/env bash
# A host behind a gateway: it reaches the other side's network through it.
#
# usage: host.sh REMOTE-NETWORK GATEWAY
set -euo pipefail
ip route replace "$1" via "$2"
echo "up ip route replace $1 via $2" >/etc/network/interfaces.d/cygnet-lab 2>/dev/null || true
