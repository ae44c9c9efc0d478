"""Connects and says nothing, many times at once; whoever is let go comes again.

    sit.py COUNT unix|tcp ADDRESS [UID GID]      prints "sitting N" when N connections were made and not yet let go
"""

import os
import resource
import select
import socket
import sys
import time

count, kind, address = int(sys.argv[1]), sys.argv[2], sys.argv[3]
resource.setrlimit(resource.RLIMIT_NOFILE, (count + 64, max(count + 64, resource.getrlimit(resource.RLIMIT_NOFILE)[1])))
if len(sys.argv) > 5:
    os.setgroups([])
    os.setgid(int(sys.argv[5]))
    os.setuid(int(sys.argv[4]))


def connect():
    if kind == "unix":
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(2)
        s.connect(address)
    else:
        host, port = address.rsplit(":", 1)
        s = socket.create_connection((host, int(port)), timeout=2)
    s.setblocking(False)
    return s


held, told, poll = {}, False, select.poll()
tries = 0
while True:
    while len(held) < count and tries < 2 * count:
        tries += 1
        try:
            s = connect()
        except OSError:
            break
        held[s.fileno()] = s
        poll.register(s, select.POLLIN | select.POLLHUP)
    for fd, _ in poll.poll(0):
        poll.unregister(fd)
        held.pop(fd).close()
    if not told and (len(held) >= count or tries >= 2 * count):
        print("sitting", len(held), flush=True)
        told = True
    # A hundred new ones a second at most.
    tries = max(0, tries - 10) if told else tries
    time.sleep(0.1 if told else 0)
