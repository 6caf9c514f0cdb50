"""Files of vectors: the forms, order, constant memory, and going on after an end of any kind, byte for byte."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.live import environment
from vecgate import bulk, texts
from vecgate.core import Vectors
from vecgate.errors import CommandError, InvalidRequest

ASKED = {"model": "m", "role": None}
Embed = Callable[[Sequence[str]], Awaitable[tuple[Vectors, int]]]


def vector(text: str) -> list[float]:
    return [len(text) / 3.0, sum(map(ord, text)) / 7.0, 1.0]


async def embed(given: Sequence[str]) -> tuple[Vectors, int]:
    return np.array([vector(text) for text in given], np.float32), sum(len(text) > 20 for text in given)


def stops_after(rows: int, error: BaseException) -> Embed:
    """`embed` until it has been given so many texts, then the error."""
    left = rows

    async def failing(given: Sequence[str]) -> tuple[Vectors, int]:
        nonlocal left
        left -= len(given)
        if left < 0:
            raise error
        return await embed(given)

    return failing


def lines(path: Path, count: int) -> Path:
    path.write_text("".join(f'{{"id": "é{i}", "text": "text {i * i}"}}\n' for i in range(count)), "utf-8")
    return path


def go(
    source: Path,
    target: Path,
    form: bulk.Form = "jsonl",
    using: Embed = embed,
    asked: dict[str, Any] | None = None,
    **options: Any,
) -> bulk.Output:
    """One run, or the next one of a run that was broken off."""
    with source.open("rb") as stream:
        read = texts.measure(stream, source.name, "jsonl")
        output = bulk.Output(target, form, bulk.begin(target, read, asked or ASKED), with_ids=True, resumable=True)
        stream.seek(output.state.place.offset)
        rows = texts.read(stream, source.name, "jsonl", texts.Fields(), output.state.place)
        asyncio.run(bulk.run(using, rows, output, **{"block_rows": 7, "in_flight": 3, **options}))
    return output


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return lines(tmp_path / "in.jsonl", 100)


EXPECTED = np.array([vector(f"text {i * i}") for i in range(100)], np.float32)
IDS = [f"é{i}" for i in range(100)]


# the forms


def test_jsonl_has_a_line_for_each_row_in_order(source: Path, tmp_path: Path) -> None:
    go(source, tmp_path / "out.jsonl")
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]
    assert [one["id"] for one in found] == IDS
    np.testing.assert_array_equal(np.array([one["embedding"] for one in found], np.float32), EXPECTED)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_json_is_one_list_of_the_same(source: Path, tmp_path: Path) -> None:
    go(source, tmp_path / "out.json", "json")
    go(source, tmp_path / "out.jsonl")
    found = json.loads((tmp_path / "out.json").read_bytes())
    assert found == [json.loads(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]


def test_npy_is_what_numpy_saves_with_the_ids_beside_it(source: Path, tmp_path: Path) -> None:
    go(source, tmp_path / "out.npy", "npy")
    saved = BytesIO()
    np.save(saved, EXPECTED)
    assert (tmp_path / "out.npy").read_bytes() == saved.getvalue()
    ids = (tmp_path / "out.npy.ids.jsonl").read_bytes().splitlines()
    assert [json.loads(one) for one in ids] == IDS


def test_a_stream_gets_the_same_bytes(source: Path, tmp_path: Path) -> None:
    for form in bulk.TRACKS:
        stream = BytesIO()
        go(source, tmp_path / "out", form)
        state = bulk.State(input=texts.Input(rows=100), asked={})
        output = bulk.Output(stream, form, state, with_ids=True, resumable=False)
        with source.open("rb") as file:
            rows = texts.read(file, "in", "jsonl", texts.Fields())
            asyncio.run(bulk.run(embed, rows, output, block_rows=9, in_flight=2))
        assert stream.getvalue() == (tmp_path / "out").read_bytes()


def test_a_complete_output_is_replaced_whole(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    target.write_bytes(b"x" * 1_000_000)
    go(source, target)
    assert len(target.read_bytes().splitlines()) == 100


def test_what_fails_at_once_leaves_what_was_there(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    target.write_bytes(b"precious")
    with pytest.raises(CommandError, match=r"^no such role \(at line 1 of in.jsonl to line 7 of in.jsonl\)\.$"):
        go(source, target, using=stops_after(0, InvalidRequest("no such role.")))
    assert target.read_bytes() == b"precious"
    assert not bulk.state_beside(target).exists()


def test_nothing_to_embed_is_said(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="empty"):
        go(lines(tmp_path / "in.jsonl", 0), tmp_path / "out.json", "json")
    assert not (tmp_path / "out.json").exists()


def test_texts_over_the_limit_are_counted(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('"short"\n' + f'"{"long" * 10}"\n' * 9)
    assert go(source, tmp_path / "out.jsonl").state.cut == 9


# blocks


def test_blocks_are_bounded_in_rows_and_characters() -> None:
    given = ["a"] * 5 + ["b" * bulk.BLOCK_CHARACTERS] * 2 + ["c" * (bulk.BLOCK_CHARACTERS // 2)] * 3
    found = list(bulk.blocks(texts.of(given), 3))
    assert [row.text[0] for block in found for row in block.rows] == list("aaaaabbccc")
    assert [(block.first, len(block.rows)) for block in found] == [(0, 3), (3, 2), (5, 1), (6, 1), (7, 2), (9, 1)]


def test_rows_are_read_only_as_far_as_the_window_reaches(tmp_path: Path) -> None:
    read, written, ahead = 0, 0, []

    def rows() -> Iterator[texts.Row]:
        nonlocal read
        for row in texts.of([str(i) for i in range(200)]):
            read += 1
            ahead.append(read - written)
            yield row

    def on_rows(count: int) -> None:
        nonlocal written
        written += count

    state = bulk.State(input=texts.Input(), asked={})
    output = bulk.Output(tmp_path / "out.jsonl", "jsonl", state, with_ids=False, resumable=False)
    asyncio.run(bulk.run(embed, rows(), output, block_rows=5, in_flight=4, on_rows=on_rows))
    assert (read, written) == (200, 200)
    assert max(ahead) <= 5 * 4 + 1  # the row that shows that a block is full


def test_blocks_that_end_in_another_order_are_written_in_order(source: Path, tmp_path: Path) -> None:
    running, most = 0, 0

    async def slow_first(given: Sequence[str]) -> tuple[Vectors, int]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(int(given[0].split()[1]) % 5):
            await asyncio.sleep(0)
        running -= 1
        return await embed(given)

    go(source, tmp_path / "out.jsonl", using=slow_first)
    found = [json.loads(line)["id"] for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]
    assert found == IDS
    assert most == 3


@pytest.mark.parametrize("form", ["jsonl", "npy"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, form: bulk.Form) -> None:
    """20,000 rows of 384 numbers are 30 MB as float32, and 100 MB as the dictionaries that JSON would make of them."""

    async def wide(given: Sequence[str]) -> tuple[Vectors, int]:
        return np.full((len(given), 384), 0.1, np.float32), 0

    source = lines(tmp_path / "in.jsonl", 20_000)
    go(lines(tmp_path / "few.jsonl", 100), tmp_path / "few", form, wide)  # what is made once is not what grows
    tracemalloc.start()
    try:
        go(source, tmp_path / "out", form, wide, block_rows=32, in_flight=16)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "out").stat().st_size > 20_000_000
    assert peak < 4_000_000


# going on


@pytest.mark.parametrize("form", ["json", "jsonl", "npy"])
@pytest.mark.parametrize("error", [CommandError("The server is gone."), asyncio.CancelledError(), KeyboardInterrupt()])
def test_what_was_broken_off_goes_on_byte_for_byte(
    source: Path, tmp_path: Path, form: bulk.Form, error: BaseException
) -> None:
    target = tmp_path / "out"
    go(source, tmp_path / "whole", form)
    for rows in (0, 20, 50, 21):  # each run so much further than the one before, at most
        with pytest.raises(type(error)):
            go(source, target, form, stops_after(rows, error))
    assert bulk.state_beside(target).exists()
    computed: list[str] = []

    async def counting(given: Sequence[str]) -> tuple[Vectors, int]:
        computed.extend(given)
        return await embed(given)

    assert go(source, target, form, counting).state.place.rows == 100
    assert len(computed) < 50
    assert target.read_bytes() == (tmp_path / "whole").read_bytes()
    assert not bulk.state_beside(target).exists()
    if form == "npy":
        names = (bulk.ids_beside(target), bulk.ids_beside(tmp_path / "whole"))
        assert names[0].read_bytes() == names[1].read_bytes()


def test_a_failure_says_which_rows_and_what_is_kept(source: Path, tmp_path: Path) -> None:
    with pytest.raises(CommandError) as told:
        go(source, tmp_path / "out.jsonl", using=stops_after(30, InvalidRequest("Too long.")))
    assert str(told.value) == (
        f"Too long (at line 29 of in.jsonl to line 35 of in.jsonl). 28 of 100 rows are in {tmp_path / 'out.jsonl'}; "
        "the same command goes on from there."
    )


def test_a_wrong_line_is_said_after_the_rows_before_it(source: Path, tmp_path: Path) -> None:
    with source.open("a") as file:
        file.write("{}\n")
    with pytest.raises(CommandError, match=r"^line 101 of in.jsonl has no field 'text'.* 100 of 101 rows are in"):
        go(source, tmp_path / "out.jsonl")
    assert len((tmp_path / "out.jsonl").read_bytes().splitlines()) == 100


def test_bytes_behind_the_last_save_are_written_again(source: Path, tmp_path: Path) -> None:
    """A process that is killed has written more than its state tells of."""
    target = tmp_path / "out.jsonl"
    go(source, tmp_path / "whole.jsonl")
    with pytest.raises(CommandError):
        go(source, target, using=stops_after(30, CommandError("gone")))
    with target.open("ab") as file:
        file.write(b'{"id":"\xc3\xa928","embed')
    go(source, target)
    assert target.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_run_that_was_killed_before_its_last_line_only_ends(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    with pytest.raises(CommandError):
        go(source, target, "json", stops_after(99, CommandError("gone")))
    output = go(source, target, "json")
    state = bulk.State(input=output.state.input, asked=ASKED, place=output.state.place, width=3)
    state.written = [target.stat().st_size - len(b"\n]\n")]
    bulk.state_beside(target).write_bytes(msgspec.json.encode(state))
    whole = target.read_bytes()
    go(source, target, "json", stops_after(0, CommandError("must not be asked")))
    assert target.read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda source, target: source.write_text('"other"\n'), "begun from other input"),
        (lambda source, target: target.write_bytes(b""), "is shorter than"),
        (lambda source, target: target.unlink(), "is shorter than"),
        (lambda source, target: bulk.state_beside(target).write_text("{"), "is no state of a run"),
        (lambda source, target: bulk.state_beside(target).write_text('{"a": 1}'), "is no state of a run"),
    ],
)
def test_another_run_is_not_gone_on_with(
    source: Path, tmp_path: Path, change: Callable[[Path, Path], object], words: str
) -> None:
    target = tmp_path / "out.jsonl"
    with pytest.raises(CommandError):
        go(source, target, using=stops_after(30, CommandError("gone")))
    change(source, target)
    with pytest.raises(CommandError, match=words) as told:
        go(source, target)
    assert "remove" in str(told.value)
    assert str(told.value).count("\n") == 0


def test_other_wishes_are_named(source: Path, tmp_path: Path) -> None:
    with pytest.raises(CommandError):
        go(source, tmp_path / "out.jsonl", using=stops_after(30, CommandError("gone")))
    with pytest.raises(CommandError, match='begun with role null, and this is "query": give the same, or remove'):
        go(source, tmp_path / "out.jsonl", asked={"model": "m", "role": "query"})


def test_rows_of_another_width_are_refused(source: Path, tmp_path: Path) -> None:
    async def narrow(given: Sequence[str]) -> tuple[Vectors, int]:
        return (await embed(given))[0][:, :2], 0

    with pytest.raises(CommandError):
        go(source, tmp_path / "out.jsonl", using=stops_after(30, CommandError("gone")))
    with pytest.raises(CommandError, match="begun with rows of 3 numbers and these have 2"):
        go(source, tmp_path / "out.jsonl", using=narrow)


def test_input_that_changes_while_it_is_read_is_refused(source: Path, tmp_path: Path) -> None:
    grew = False

    async def growing(given: Sequence[str]) -> tuple[Vectors, int]:
        nonlocal grew
        if not grew:
            lines(tmp_path / "in.jsonl", 200)
            grew = True
        return await embed(given)

    with pytest.raises(CommandError, match="changed while it was read"):
        go(source, tmp_path / "out.jsonl", using=growing)
    assert not bulk.state_beside(tmp_path / "out.jsonl").exists()


def test_two_runs_into_one_file_are_refused(source: Path, tmp_path: Path) -> None:
    async def meddling(given: Sequence[str]) -> tuple[Vectors, int]:
        if held.state.place.rows:
            with pytest.raises(CommandError, match="being written by another run"):
                other.add(*next(iter(part)), 0)
        return await embed(given)

    def output() -> bulk.Output:
        state = bulk.State(input=texts.Input(rows=100), asked={})
        return bulk.Output(tmp_path / "out.jsonl", "jsonl", state, with_ids=False, resumable=True)

    held, other = output(), output()
    block = next(bulk.blocks(texts.of(["a"]), 1))
    part = [(block, np.ones((1, 3), np.float32))]
    with source.open("rb") as stream:
        rows = texts.read(stream, "in", "jsonl", texts.Fields())
        asyncio.run(bulk.run(meddling, rows, held, block_rows=50, in_flight=1))
    assert held.state.place.rows == 100


SCRIPT = """
import asyncio, sys
from pathlib import Path
import numpy as np
from vecgate import bulk, texts

done = 0

async def embed(given):
    global done
    done += len(given)
    await asyncio.sleep(0.002 if done < last else 3600)
    return np.array([[len(text), sum(map(ord, text))] for text in given], np.float32), 0

bulk.SAVE_S = 0.05
source, target, last = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
with source.open("rb") as stream:
    output = bulk.Output(target, "jsonl", bulk.begin(target, texts.measure(stream, "in", "jsonl"), {}),
                         with_ids=True, resumable=True)
    stream.seek(output.state.place.offset)
    rows = texts.read(stream, "in", "jsonl", texts.Fields(), output.state.place)
    asyncio.run(bulk.run(embed, rows, output, block_rows=4, in_flight=2))
"""


@pytest.mark.parametrize("signal", ["INT", "KILL"])
def test_a_process_that_is_ended_goes_on_byte_for_byte(tmp_path: Path, signal: str) -> None:
    source, target = lines(tmp_path / "in.jsonl", 1_500), tmp_path / "out.jsonl"
    command = [sys.executable, "-c", SCRIPT]
    running = subprocess.Popen([*command, source, target, "1000"], env=environment(), stderr=subprocess.PIPE)
    waits_for = bulk.state_beside(target) if signal == "KILL" else target
    until = time.monotonic() + 60
    while not (waits_for.exists() and waits_for.stat().st_size) and running.poll() is None:
        assert time.monotonic() < until
    running.send_signal({"INT": 2, "KILL": 9}[signal])
    running.communicate(timeout=60)
    assert running.returncode != 0
    assert bulk.state_beside(target).exists()
    done = len(target.read_bytes().splitlines())
    assert 0 < done < 1_500
    for path in (target, tmp_path / "whole.jsonl"):
        subprocess.run([*command, source, path, "inf"], env=environment(), check=True, timeout=120)
    assert target.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not bulk.state_beside(target).exists()
