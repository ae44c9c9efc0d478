#!/usr/bin/env python3
"""`scripts/bench instructions`: how many instructions things take beside other tunnels. Prints a line of JSON for each.

usage: instructions.py [--check] [TUNNELS...]     (100 1000)

With --check the exit code is 1 if something takes more than it may, or more beside many tunnels than beside few.
Needs valgrind; builds what it measures.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile

PROGRAM = "target/release/cygnet-cost"
TIMES = 50
# Instructions of both gateways together, and for packets of 1,400 octets. A tenth above what was measured: what costs
# more than that was not meant to.
MOST = {"handshake": 2_400_000, "rekey-child": 2_300_000, "rekey-ike": 2_200_000, "seal": 12_500, "seal-and-open": 22_500}
# Beside the most tunnels against beside the fewest. Tables in which something is looked up grow by the logarithm.
GROWTH = 1.03


def instructions(work, tunnels):
    with tempfile.NamedTemporaryFile() as out:
        command = [
            "valgrind", "--tool=callgrind", "--toggle-collect=*cygnet_cost::measured*", f"--callgrind-out-file={out.name}",
            PROGRAM, work, str(tunnels), str(TIMES),
        ]  # fmt: skip
        ran = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    counted = re.search(r"Collected : (\d+)", ran.stderr)
    if ran.returncode != 0 or not counted or counted[1] == "0":
        sys.exit(f"{' '.join(command)}: exit code {ran.returncode}\n{ran.stderr}")
    return int(counted[1]) / TIMES


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench instructions", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="exit code 1 if something takes more than it may")
    parser.add_argument("tunnels", nargs="*", type=int, default=[100, 1000], help="so many others (100 1000)")
    arguments = parser.parse_args()
    check, sizes = arguments.check, arguments.tunnels
    build = ["cargo", "build", "--locked", "--release", "--quiet", "-p", "cygnet", "-p", "cygnet-cost"]
    subprocess.run(build, check=True)
    trouble = []
    for work, most in MOST.items():
        figures = {tunnels: instructions(work, tunnels) for tunnels in sizes}
        print(json.dumps({"bench": "instructions", "work": work} | {str(n): round(f) for n, f in figures.items()}), flush=True)
        few, many = figures[min(sizes)], figures[max(sizes)]
        if many > most:
            trouble.append(f"{work}: {many:.0f} instructions; it may take {most}")
        if many > few * GROWTH:
            trouble.append(f"{work}: {many / few:.3f} times as many beside {max(sizes)} tunnels as beside {min(sizes)}")
    if check and trouble:
        sys.exit("\n".join(trouble))


if __name__ == "__main__":
    main()
