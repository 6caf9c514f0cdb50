"""vecgate's command line with seconds in place of its long limits on a slow client: `python -m tests.impatient serve`."""

from __future__ import annotations

from vecgate import cli, server
from vecgate.guard import Guard

if __name__ == "__main__":
    server.HEADER_TIMEOUT_MS = 1_000
    (Guard.__init__.__kwdefaults__ or {}).update(body_grace_s=1.0, linger_s=0.2)
    raise SystemExit(cli.main())
