"""A stream of numbered datagrams, and what arrives of it.

    stream.py send FROM TO PORT RATE SECONDS     sends RATE numbered datagrams a second
    stream.py take AT PORT                       takes and returns them until there is silence for 20 s; then prints, each on a line, how
                                                 many were sent before the last one and how many of these are missing, and
                                                 every gap as FIRST LENGTH
"""

import socket
import struct
import sys
import time

SO_RCVBUFFORCE = 33


def send(source, target, port, rate, seconds):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind((source, 0))
        begin = time.monotonic()
        for number in range(int(rate * seconds)):
            time.sleep(max(0, begin + number / rate - time.monotonic()))
            try:
                s.sendto(struct.pack(">I", number) + bytes(60), (target, port))
            except OSError:
                pass  # blocked by a guard: lost like any other


def take(at, port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind((at, port))
        # What is lost shall be lost on the way, not behind a process that waits for its turn.
        s.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
        s.settimeout(60)
        seen = set()
        while True:
            try:
                datagram, sender = s.recvfrom(2048)
            except TimeoutError:
                break
            seen.add(struct.unpack_from(">I", datagram)[0])
            try:
                s.sendto(datagram, sender)
            except OSError:
                pass
            s.settimeout(20)
    last = max(seen, default=-1)
    missing = sorted(set(range(last + 1)) - seen)
    print(last + 1)
    print(len(missing))
    first = previous = None
    for number in missing + [None]:
        if first is not None and number != previous + 1:
            print(first, previous - first + 1)
            first = None
        if first is None:
            first = number
        previous = number


if sys.argv[1] == "send":
    send(sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5]), float(sys.argv[6]))
else:
    take(sys.argv[2], int(sys.argv[3]))
