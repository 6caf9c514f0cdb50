"""vecgate's command line in a process that writes down whom it calls: `python -m tests.alone serve`, then outgoing.txt.

Every connection, datagram and name that Python asks for is there, this machine's own too.
"""

from __future__ import annotations

import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from vecgate import cli

OUTGOING = "outgoing.txt"
BEGUN = "begun"


def is_address(host: object) -> bool:
    try:
        ip_address(str(host))
    except ValueError:
        return host is None
    return True


def noted(event: str, arguments: tuple[Any, ...]) -> None:
    asked = event in ("socket.connect", "socket.sendto", "socket.gethostbyname")
    if asked or (event == "socket.getaddrinfo" and not is_address(arguments[0])):
        with Path(OUTGOING).open("a") as notes:
            notes.write(f"{event} {arguments[1:] if event != 'socket.getaddrinfo' else arguments}\n")


if __name__ == "__main__":
    Path(OUTGOING).write_text(f"{BEGUN}\n")
    sys.addaudithook(noted)
    raise SystemExit(cli.main())
