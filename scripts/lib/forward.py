"""Passes TCP connections to an address of this host on to the same address in a network namespace, until it is told to end.

usage: forward.py NAMESPACE ADDRESS PORT
"""

import os
import socket
import sys
import threading


def pass_on(source, target):
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass
    for end in (source, target):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def serve(listener, address):
    while True:
        here, _ = listener.accept()
        try:
            there = socket.create_connection(address)
        except OSError:
            here.close()
            continue
        for pair in ((here, there), (there, here)):
            threading.Thread(target=pass_on, args=pair, daemon=True).start()


if sys.argv[1] == "--inside":
    # A socket stays in the namespace in which it was made.
    serve(socket.socket(fileno=int(sys.argv[2])), (sys.argv[3], int(sys.argv[4])))
else:
    namespace, address, port = sys.argv[1:]
    listener = socket.create_server((address, int(port)))
    listener.set_inheritable(True)
    inside = [sys.executable, os.path.abspath(__file__), "--inside", str(listener.fileno()), address, port]
    os.execvp("ip", ["ip", "netns", "exec", namespace, *inside])
