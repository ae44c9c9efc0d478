#!/usr/bin/env python3
"""Sends ICMP echo requests at a steady pace and counts the answers (RFC 792).

    echo.py TARGET COUNT INTERVAL     COUNT requests, INTERVAL seconds apart; prints how many were sent and answered

Whatever becomes of the answers: ping(8) sends fewer requests than it is told while answers are missing, and spins while they are not
(findings/ping-slows-down-while-answers-are-missing.sh).
"""

import contextlib
import os
import select
import socket
import struct
import sys
import time

REQUEST, REPLY = 8, 0
# linux/socket.h and linux/icmp.h: a raw socket gets what is not in this set of types.
SOL_RAW, ICMP_FILTER = 255, 1
# How long the last answers are waited for.
PATIENCE = 2.0
# A machine that was away sends what it missed at once, but no more than this.
AT_ONCE = 10


def checksum(data):
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def request(identifier, sequence):
    body = struct.pack(">HH", identifier, sequence) + bytes(56)
    return struct.pack(">BBH", REQUEST, 0, checksum(struct.pack(">BBH", REQUEST, 0, 0) + body)) + body


def waiting(echo):
    """The identifiers and sequence numbers of the answers that are there."""
    with contextlib.suppress(BlockingIOError):
        while True:
            packet = echo.recv(2048)
            reply = packet[(packet[0] & 0x0F) * 4:]
            yield struct.unpack(">HH", reply[4:8])


def main(target, count, interval):
    echo = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    echo.setsockopt(SOL_RAW, ICMP_FILTER, struct.pack("=I", ~(1 << REPLY) & 0xFFFFFFFF))
    echo.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    echo.setblocking(False)
    identifier, answered, sent = os.getpid() & 0xFFFF, set(), 0
    due = time.monotonic()
    end = None
    while len(answered) < count:
        now = time.monotonic()
        while sent < count and due <= now:
            # What cannot be sent is a request without an answer.
            with contextlib.suppress(OSError):
                echo.sendto(request(identifier, sent & 0xFFFF), (target, 0))
            sent += 1
            due = max(due + interval, now - AT_ONCE * interval)
        if sent == count:
            end = end or now + PATIENCE
            if now >= end:
                break
        wait = (due if sent < count else end) - now
        select.select([echo], [], [], max(wait, 0))
        for theirs, sequence in waiting(echo):
            if theirs == identifier:
                answered.add(sequence)
    print(f"{sent} packets transmitted, {len(answered)} received")


if __name__ == "__main__":
    if len(sys.argv) != 4 or not 0 < int(sys.argv[2]) <= 1 << 16:
        sys.exit(__doc__)
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
