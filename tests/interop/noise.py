"""Sends what is no IKEv2 to an IKE responder.

    noise.py FROM TO     100 datagrams that are too short, 100 with a wrong length field, 100 of another major version
"""

import os
import random
import socket
import struct
import sys
import time

source, target = sys.argv[1], sys.argv[2]
lengths = random.Random(1)


def header(version, length):
    return os.urandom(8) + bytes(8) + struct.pack(">BBBBII", 33, version, 34, 0x08, 0, length)


with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.bind((source, 0))
    for _ in range(100):
        # Too short for a header.
        s.sendto(os.urandom(lengths.randrange(1, 28)), (target, 500))
        s.sendto(header(0x20, 1 << 31) + os.urandom(40), (target, 500))
        s.sendto(header(0x30, 28), (target, 500))
        time.sleep(0.01)
