"""Asks /health/live over and over until its input ends, then prints the seconds that each answer took, as JSON, and by
how many the machine let this process oversleep before: what no server can help.

A process of its own, so that what it measures is the server and not the soak's own loop.
"""

from __future__ import annotations

import http.client
import json
import select
import sys
import time

EVERY_S = 0.02
LATE_S = 30.0


def ask(port: int) -> float:
    """Seconds until /health/live said 200; LATE_S where it did not."""
    begun = time.perf_counter()
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LATE_S)
        connection.request("GET", "/health/live")
        answer = connection.getresponse()
        answer.read()
        connection.close()
    except OSError:
        return LATE_S
    return time.perf_counter() - begun if answer.status == 200 else LATE_S


def main(port: int) -> None:
    seconds, overslept, begun = [], [], time.perf_counter()
    while not select.select([sys.stdin], [], [], EVERY_S)[0]:
        overslept.append(time.perf_counter() - begun - EVERY_S)
        seconds.append(ask(port))
        begun = time.perf_counter()
    print(json.dumps([seconds, overslept]))


if __name__ == "__main__":
    main(int(sys.argv[1]))
