#!/usr/bin/env bash
# Edge-triggered epoll says of a UDP socket that it is writable after each datagram that it sends, although it never was full.
#
# First guess: an edge of EPOLLOUT comes when a full socket has room again, so that watching for it costs nothing while there
# is room. Seen: whenever a datagram leaves the send buffer (here: when it is received on the same host) the kernel calls the
# socket's write-space wake-up as long as no more than half of the buffer is in use, and each wake-up is an edge. Runtimes that
# register sockets for both directions at once (tokio's UdpSocket and AsyncFd::new do) therefore go around their loop once more
# for each datagram that is sent, and a gateway that answers many small requests pays for it. Watched for EPOLLIN alone there
# is nothing.
#
# Needs python3. Exit code 0: as described.
set -euo pipefail
echo "kernel $(uname -r), $(python3 --version)"
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cat >"$dir/edges.py" <<'PY'
import select
import socket


def edges(events, datagrams):
    """How often epoll tells of a socket that sends so many datagrams to another one, which takes each at once."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as to, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as by:
        to.bind(("127.0.0.1", 0))
        by.bind(("127.0.0.1", 0))
        poll = select.epoll()
        poll.register(by, events | select.EPOLLET)
        poll.poll(0.1)  # The first edge: it is writable.
        told = 0
        for _ in range(datagrams):
            by.sendto(b"x", to.getsockname())
            to.recv(1)
            told += len(poll.poll(0.1))
        return told


both, reading = edges(select.EPOLLIN | select.EPOLLOUT, 20), edges(select.EPOLLIN, 20)
print(f"20 datagrams sent: {both} events when watched for both directions, {reading} when watched for reading")
raise SystemExit(0 if (both, reading) == (20, 0) else 1)
PY
python3 "$dir/edges.py"
