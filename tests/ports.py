"""Ports for servers of tests, which may be started some time after they were chosen."""

import itertools
import os
import socket

# Below the range from which systems take the ports of outgoing connections, or another test's
# connection could get the port before its server does.
_FIRST, _LAST = 20_000, 32_000
_NEXT = itertools.count(os.getpid() * 97)


def free_port() -> int:
    """Return a port of the loopback address that is free, and that this process gives once."""
    for number in _NEXT:
        port = _FIRST + number % (_LAST - _FIRST)
        with socket.socket() as server:
            try:
                server.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError("the count has no end")
