"""Sends or receives a stream of reproducible octets over TCP and prints its SHA-256.

    transfer.py serve ADDRESS PORT OCTETS      waits for one client, sends to it
    transfer.py fetch ADDRESS PORT             receives until the end, prints octets and digest
"""

import hashlib
import random
import socket
import sys


def chunks(total):
    block = random.Random(total).randbytes(1 << 20)
    while total:
        part = block[: min(total, len(block))]
        yield part
        total -= len(part)


def serve(address, port, total):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(1)
        listener.settimeout(30)
        connection, _ = listener.accept()
        digest = hashlib.sha256()
        with connection:
            for part in chunks(total):
                connection.sendall(part)
                digest.update(part)
        print(total, digest.hexdigest())


def fetch(address, port):
    digest, total = hashlib.sha256(), 0
    with socket.create_connection((address, port), timeout=10) as connection:
        connection.settimeout(30)
        while part := connection.recv(1 << 16):
            digest.update(part)
            total += len(part)
    print(total, digest.hexdigest())


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        fetch(sys.argv[2], int(sys.argv[3]))
