"""A run's data: every sequence once per epoch, the same everywhere, also when the run is prolonged."""

import asyncio
import dataclasses
import hashlib
import itertools
import json
import random
import sys
from pathlib import Path

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.config import RunConfig, prolonged
from swarmd.errors import ConfigError
from swarmd.text import tokens
from swarmd.text.data import Permutation, RunData, load_data
from tests.text.texts import Builder, small_run


def data_of(run: RunConfig, count: int) -> RunData:
    return RunData(run, numpy.arange(count) % 251, "digest")


@given(st.integers(1, 700), st.text(max_size=8))
def test_a_permutation_reaches_every_place_once(count: int, key: str) -> None:
    permutation = Permutation(count, key)
    assert sorted(permutation(place) for place in range(count)) == list(range(count))


def test_a_permutation_depends_on_its_key_and_mixes() -> None:
    one, other = Permutation(1000, "a"), Permutation(1000, "b")
    order = [one(place) for place in range(1000)]
    assert order != [other(place) for place in range(1000)]
    assert sum(abs(a - b) == 1 for a, b in itertools.pairwise(order)) < 20
    assert Permutation(10**12, "big")(10**12 - 1) < 10**12


async def test_every_training_sequence_once_per_epoch_and_held_out_ones_never() -> None:
    run = small_run("unused")
    data = data_of(run, run.model.sequence_length * 60 + 1)  # 60 sequences: 6 held out, 54 trained, so 9 steps an epoch
    assert (data.slots, data.held, data.trained) == (60, 6, 54)
    epochs = []
    for first_step in (1, 10):
        steps = range(first_step, first_step + 9)
        epochs.append([slot for step in steps for index in range(3) for slot in data.training_slots(step, index)])
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert len(set(epochs[0])) == 54
    assert epochs[0] != epochs[1], "another order in every epoch"
    held = {bytes(await data.held_out(index)) for index in range(3)}
    trained = {bytes(await data.microbatch(step, index)) for step in range(1, 19) for index in range(3)}
    assert not held & trained
    assert await data.held_out(0) == await data.held_out(3), "validation begins again"
    assert len(held) == 3


async def test_a_microbatch_is_int32_rows_of_consecutive_tokens_and_depends_on_the_seed() -> None:
    run = small_run("unused")
    ids = numpy.arange(24 * 40 + 1)
    rows = numpy.frombuffer(await RunData(run, ids, "").microbatch(2, 1), dtype="<i4").reshape(2, 25)
    assert (numpy.diff(rows) == 1).all()
    assert (rows[:, 0] % 24 == 0).all()
    other = RunData(dataclasses.replace(run, seed=6), ids, "")
    assert await other.microbatch(2, 1) != await RunData(run, ids, "").microbatch(2, 1)


def test_too_few_tokens_for_a_step_is_said_with_the_number_needed() -> None:
    with pytest.raises(ConfigError, match="too few for one step of 6 sequences; give at least"):
        data_of(small_run("unused"), 100)


def streaming(monkeypatch: pytest.MonkeyPatch, *documents: str) -> None:
    """`hf:any` streams these."""

    class Finite(Builder):
        def as_streaming_dataset(self, split: str) -> object:
            return ({"text": text} for text in documents)

    class Library:
        @staticmethod
        def load_dataset_builder(name: str, subset: str | None) -> Builder:
            return Finite({"train": [f"hf://datasets/{name}@c0ffee/data.jsonl"]})

    monkeypatch.setitem(sys.modules, "datasets", Library)


def sequences(run: RunConfig, data: RunData, steps: range) -> list[bytes]:
    """The sequences of these steps, one by one."""
    batches = (asyncio.run(data.microbatch(step, index)) for step in steps for index in range(run.microbatches))
    size = 4 * (run.model.sequence_length + 1)
    return [bytes(batch)[at : at + size] for batch in batches for at in range(0, len(bytes(batch)), size)]


LINES = [f"{number} {random.Random(number).randbytes(20).hex()}\n" for number in range(900)]  # no two are alike
TOTALS = (8, 20, 14, 40, 60)  # of a run that is prolonged, shortened, and prolonged again


@pytest.mark.parametrize("source", ["file", "stream", "short stream"])
def test_more_steps_change_nothing_of_what_is_done_and_repeat_nothing(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every source steps would train on the same under the next total, and none comes twice until all sequences had
    their turn.
    """
    streaming(monkeypatch, *LINES[: 60 if source == "short stream" else None])
    (tmp_path / "text.txt").write_text("".join(LINES[:200]))
    run = small_run(str(tmp_path / "text.txt") if source == "file" else "hf:any")
    run = dataclasses.replace(run, steps=TOTALS[0])
    done: list[bytes] = []
    held = bytes(asyncio.run(load_data(run, cache_directory=tmp_path / "0").held_out(0)))
    trained = set[int]()
    for number, steps in enumerate(TOTALS):
        run = prolonged(run, steps)
        data = load_data(run, cache_directory=tmp_path / ("0" if number % 2 else "new"))
        now = sequences(run, data, range(1, steps + 1))
        assert now[: len(done)] == done[: len(now)]
        done = max(now, done, key=len)
        assert len(set(now[: data.trained])) == min(len(now), data.trained), "one came twice in the first epoch"
        assert bytes(asyncio.run(data.held_out(0))) == held, "validation stays comparable"
        trained.add(data.trained)
    assert len(trained) == {"file": 1, "stream": 4, "short stream": 2}[source]


def test_later_epochs_of_a_prolonged_stream_have_each_sequence_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streaming(monkeypatch, *LINES[:150])
    run = prolonged(dataclasses.replace(small_run("hf:any"), steps=8), 500)
    data = load_data(run, cache_directory=tmp_path)
    assert 8 * 6 < data.trained < 500 * 6 // 2, "the stream ends before the run does"
    epochs = [sorted(data._slot(epoch * data.trained + it) for it in range(data.trained)) for epoch in range(3)]
    assert epochs[0] == epochs[1] == epochs[2]
    assert len(set(epochs[0])) == data.trained
    held = {data._split(place) for place in range(data.held)}
    assert not held & set(epochs[0])
    assert held | set(epochs[0]) == set(range(data.slots))


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (LINES, [*LINES[:5], "another\n", *LINES[6:]]),  # it was edited
        (LINES, LINES[:10]),  # it was cut off
        (LINES[:20], LINES),  # it has grown where the run had come to its end
    ],
)
def test_a_stream_that_is_another_one_now_is_refused(
    before: list[str], now: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = dataclasses.replace(small_run("hf:any"), steps=20)
    streaming(monkeypatch, *before)
    old = load_data(run, cache_directory=tmp_path)
    streaming(monkeypatch, *now)
    with pytest.raises(ConfigError, match="hf:any is no longer what the run has trained on so far"):
        load_data(prolonged(run, 40), cache_directory=tmp_path)
    assert load_data(run, cache_directory=tmp_path).digest == old.digest, "the old tokens are still there"
    assert not list(tmp_path.glob(".tokens-*"))


@pytest.mark.parametrize("changed", [0, 1])
def test_a_stream_that_a_release_before_made_other_tokens_of_is_refused(
    changed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the same total of steps, and in the next."""
    streaming(monkeypatch, *LINES)
    run = dataclasses.replace(small_run("hf:any"), steps=20)
    made = load_data(run, cache_directory=tmp_path / "now")._ids
    ids = bytes(made.tolist())
    old = tokens._Cached(run.data, 256, tmp_path, []).path(len(ids), tokens.FORMER_FORMAT)
    ids = bytes([ids[0] ^ changed, *ids[1:]])
    digest = hashlib.blake2b(made.dtype.str.encode() + ids, digest_size=16).hexdigest()
    for longer in (run, prolonged(run, 40)):
        old.write_bytes(ids)
        old.with_suffix(".json").write_text(json.dumps({"count": len(ids), "largest": max(ids), "digest": digest}))
        if changed:
            with pytest.raises(ConfigError, match=r"tokens that an earlier release made of|no longer what the run"):
                load_data(longer, cache_directory=tmp_path, begun=True)
        else:
            load_data(longer, cache_directory=tmp_path, begun=True)
            assert not old.exists()


def test_peers_with_as_many_tokens_but_added_otherwise_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streaming(monkeypatch, *LINES)
    longer = dataclasses.replace(small_run("hf:any"), steps=20)
    added = load_data(prolonged(dataclasses.replace(longer, steps=8), 20), cache_directory=tmp_path)
    at_once = load_data(longer, cache_directory=tmp_path)
    assert added._ids.tolist() == at_once._ids.tolist()
    assert added.digest != at_once.digest
