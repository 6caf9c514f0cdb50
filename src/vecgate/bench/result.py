"""What one run of the bench found, as its JSON file has it; docs/performance.md says what each figure means.

Knows no measuring. A field of None was not measured; names carry their units.
"""

from __future__ import annotations

import msgspec

from vecgate.bench.figures import Spread

SCHEMA = 1


class Machine(msgspec.Struct, frozen=True):
    """load_average: at the begin, over a minute; more than a little means that others were at work."""

    system: str
    processor: str
    cores: int
    memory_bytes: int
    python: str
    load_average: float | None = None


class Ceiling(msgspec.Struct, frozen=True):
    """The most this machine was seen to do in one matrix product and in one copy, by the library and type that serve."""

    library: str
    version: str
    device: str
    dtype: str
    threads: int
    flops_per_s: float
    bytes_per_s: float


class Raw(msgspec.Struct, frozen=True):
    """The model without HTTP. full_batch_s: one forward as large as a batch may be, of chunks. flops_a_token: of the
    matrix products alone (None: the weights do not tell); attention's depends on the length and is added where used."""

    model: str
    backend: str
    device: str
    dtype: str
    batch_tokens: int
    full_batch_s: float
    weight_bytes: int
    flops_a_token: float | None = None


class Server(msgspec.Struct, frozen=True):
    """One server, as it describes itself."""

    url: str
    software: str | None = None
    version: str | None = None
    model: str | None = None
    backend: str | None = None
    device: str | None = None
    dtype: str | None = None


class Floor(msgspec.Struct, frozen=True):
    """One client on a server that does nothing: what of any latency here is the client's and the loopback's."""

    p50_ms: float
    cpu_ms_a_request: float


class Round(msgspec.Struct, frozen=True):
    """One window on one server.

    requests: that were right, each counted by the share of it that lies in the window. texts: of a rerank its documents.
    tokens_per_s: by the server's own count. client_cpu: of one core. late_ms: how late the open loop sent, p99.
    errors: requests without a right answer, by kind. unchecked: answers that were too many to keep. stages_ms: medians of
    what Server-Timing told, "rest" being what is left of the latency. raw: the same texts without HTTP, of one client call
    by call, of several all together; raw_p50_ms: of one client's call.
    """

    seconds: float
    requests: float
    texts_per_s: float
    tokens_per_s: float
    p50_ms: float | None
    p90_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    most_ms: float | None
    client_cpu: float
    errors: dict[str, int]
    unchecked: int = 0
    late_ms: float | None = None
    stages_ms: dict[str, float] = {}
    raw_texts_per_s: float | None = None
    raw_flops_per_s: float | None = None
    raw_p50_ms: float | None = None


class Row(msgspec.Struct, frozen=True):
    """One mix at one load on one server. server: its index. rate: requests a second of an open loop.

    served_to_raw: texts/s, of each round. p50_to_raw: of one client's requests over their forwards. ceiling_share: served tokens/s times their FLOPs over the ceiling.
    """

    server: int
    mix: str
    texts_a_request: int
    concurrency: int | None
    rate: float | None
    rounds: list[Round]
    texts_per_s: Spread | None
    p50_ms: Spread | None
    p99_ms: Spread | None
    served_to_raw: Spread | None = None
    p50_to_raw: Spread | None = None
    ceiling_share: Spread | None = None


class Ratio(msgspec.Struct, frozen=True):
    """The first server over the second, round by round. p50: above 1 the first is slower."""

    mix: str
    concurrency: int | None
    rate: float | None
    texts_per_s_rounds: list[float]
    p50_rounds: list[float]
    texts_per_s: Spread | None
    p50: Spread | None


class BulkRound(msgspec.Struct, frozen=True):
    query_alone: Round
    query_beside: Round
    bulk_alone: Round
    bulk_beside: Round


class BulkRow(msgspec.Struct, frozen=True):
    """One client's single queries, and another's chunks in calls of `texts_a_call`, each alone and side by side.

    rate_kept: the bulk's texts/s beside queries over those alone. p99_over_batch: the queries' p99 beside the bulk over
    the time of one full batch.
    """

    server: int
    texts: int
    texts_a_call: int
    calls_in_flight: int
    rounds: list[BulkRound]
    query_alone_p99_ms: Spread | None
    query_beside_p50_ms: Spread | None
    query_beside_p99_ms: Spread | None
    rate_kept: Spread | None
    p99_over_batch: Spread | None = None


class Sweep(msgspec.Struct, frozen=True):
    """texts/s over one number: what = batch, length, concurrency or documents. values: one for each of the rows."""

    what: str
    values: list[int]
    rows: list[Row]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """errors: sentences; with one of them the figures are not to be used."""

    schema: int = SCHEMA
    command: str
    begun: str
    vecgate: str
    machine: Machine
    servers: list[Server]
    floor: Floor | None = None
    raw: Raw | None = None
    ceiling: Ceiling | None = None
    rows: list[Row] = []
    ratios: list[Ratio] = []
    bulk: list[BulkRow] = []
    sweeps: list[Sweep] = []
    errors: list[str] = []
