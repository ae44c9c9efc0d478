#!/usr/bin/env bash
# A table with the flag `owner` goes with the process that made it, however it ends; only with `persist` it stays.
#
# One expects `owner` to keep others from changing a table. It does, and `nft flush ruleset` leaves it alone; but it also
# binds the table to the life of the netlink socket: a daemon that is killed takes its rules with it, and fails open.
# `persist` (Linux 6.9) lets the table stay, without an owner, until somebody claims it.
#
# nftables 1.0.6 cannot say `persist`, so that the script writes the messages itself.
#
# Seen with Linux 6.18:
#   owner: a flush by others leaves it, the end of its socket removes it
#   owner and persist: a flush by others leaves it, after the end of its socket it is there
#
# usage: findings/nft-owner-needs-persist.sh      needs root, nftables, python3, unshare
set -euo pipefail
[ "$(id -u)" = 0 ] || { echo "needs root" >&2; exit 77; }
uname -r
nft --version
exec unshare --net python3 -c '
import socket, struct, subprocess, sys, time
OWNER, PERSIST = 2, 4
def attr(kind, data):
    return struct.pack("=HH", 4 + len(data), kind) + data + b"\0" * (-len(data) % 4)
def message(kind, flags, family, body, resource=0):
    body = struct.pack("=BBH", family, 0, socket.htons(resource)) + body
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body
def make(name, flags):
    s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
    s.bind((0, 0))
    table = attr(1, name + b"\0") + attr(2, struct.pack(">I", flags))
    s.send(message(0x10, 1, 0, b"", 10) + message(0xA00, 1 | 4 | 0x400, 1, table) + message(0x11, 1, 0, b"", 10))
    code = struct.unpack_from("=i", s.recv(4096), 16)[0]
    return s, code
def there(name):
    return name.decode() in subprocess.run(["nft", "list", "tables"], capture_output=True, text=True).stdout
seen = []
for flags in (OWNER, OWNER | PERSIST):
    s, code = make(b"t%d" % flags, flags)
    if code:
        print("flags", flags, "are refused:", code, "(before Linux 6.9)")
        sys.exit(77)
    subprocess.run(["nft", "flush", "ruleset"], capture_output=True)
    flushed = there(b"t%d" % flags)
    s.close()
    time.sleep(0.5)
    seen.append((flushed, there(b"t%d" % flags)))
    print("flags", flags, "after a flush by others:", seen[-1][0], "after the end of its socket:", seen[-1][1])
if seen != [(True, False), (True, True)]:
    sys.exit("changed")
'
