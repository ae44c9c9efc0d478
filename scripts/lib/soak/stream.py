"""A stream of numbered packets that are answered one by one, and what became of each.

    stream.py echo PORT                      answers until it is ended
    stream.py send PORT RATE ADDRESS...      RATE packets a second, to the addresses in turn, until SIGTERM; then, as JSON:
                                             sent, answered, lost, and the gaps with their beginning and end in seconds
                                             of CLOCK_BOOTTIME
"""

import json
import select
import signal
import socket
import struct
import sys
import time

# Losses that are nearer to each other than this belong to one gap, in seconds.
JOINS = 0.25
# How long the last answers may take.
LAST = 2
# A sender that was kept from running makes up for so many packets at once and not more: a burst that fills somebody's queue
# would be its own fault.
BEHIND = 16
# Room in sockets beyond the system's limit (socket.SO_RCVBUFFORCE has no name in Python).
SO_RCVBUFFORCE = 33


def clock():
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def echo(port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
        s.bind(("0.0.0.0", port))
        while True:
            data, sender = s.recvfrom(2048)
            try:
                s.sendto(data, sender)
            except OSError:
                pass


def send(port, rate, addresses):
    ended = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    sent, answered = [], bytearray()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
        s.setblocking(False)

        def collect(until):
            while True:
                if not select.select([s], [], [], max(0, until - clock()))[0]:
                    return
                try:
                    number = struct.unpack_from(">I", s.recv(2048))[0]
                    answered[number] = 1
                except (OSError, IndexError, struct.error):
                    pass

        print("sending", file=sys.stderr, flush=True)
        start = clock()
        while not ended:
            due = start + len(sent) / rate
            late = clock() - due - BEHIND / rate
            start += max(0, late)
            collect(due)
            to = addresses[len(sent) % len(addresses)]
            try:
                s.sendto(struct.pack(">I", len(sent)) + bytes(60), (to, port))
            except OSError:
                pass
            sent.append(clock())
            answered.append(0)
        collect(clock() + LAST)
    gaps = []
    for number, at in enumerate(sent):
        if answered[number]:
            continue
        after = sent[number + 1] if number + 1 < len(sent) else at
        if gaps and at - gaps[-1]["end"] < JOINS:
            gaps[-1]["end"] = after
            gaps[-1]["lost"] += 1
        else:
            gaps.append({"begin": at, "end": after, "lost": 1})
    for gap in gaps:
        gap["begin"], gap["end"] = round(gap["begin"], 3), round(gap["end"], 3)
    print(json.dumps({"sent": len(sent), "answered": sum(answered), "lost": len(sent) - sum(answered), "gaps": gaps}))


if sys.argv[1] == "echo":
    echo(int(sys.argv[2]))
else:
    send(int(sys.argv[2]), float(sys.argv[3]), sys.argv[4:])
