"""Reads `ip -s xfrm state` and prints the inbound SAs of an address: sorted (SPI, octets, packets).

    ip -s xfrm state | xfrm_counters.py ADDRESS
"""

import re
import sys

address = sys.argv[1]
found = []
spi = destination = None
for line in sys.stdin:
    if start := re.match(r"src (\S+) dst (\S+)", line):
        destination = start[2]
    elif proto := re.search(r"proto esp spi 0x([0-9a-f]{8})", line):
        spi = proto[1]
    elif "lifetime current" in line and destination == address:
        counts = next(sys.stdin)
        octets, packets = re.search(r"(\d+)\(bytes\), (\d+)\(packets\)", counts).groups()
        found.append((spi, int(octets), int(packets)))
print(sorted(found))
