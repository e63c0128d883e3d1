"""Streams yield the same views as random access for the same plan, also per rank, and resume exactly."""

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mbt.manifests.errors import ConfigError, ShardError
from mbt.manifests.reading.reader import ShardReader
from mbt.manifests.reading.stream import ShardStream
from mbt.train.data import random_access
from mbt.train.data.batch import RawBatch
from mbt.train.data.corruption import CorruptSamples
from mbt.train.data.prefetch import Prefetcher, round_robin
from mbt.train.data.streaming import TrainStream, check_streams, eval_batches
from mbt.train.evaluation.evaluate import evaluate
from mbt.train.sampling.inputs import Inputs
from mbt.train.sampling.order import Streamed
from mbt.train.sampling.plan import TrainPlan
from mbt.train.trainer import train
from tests.tiny import tiny
from tests.train.data.test_corruption import no_json
from tests.train.distributed.test_survival import losses

RUN = ("train.max_steps=6", "train.checkpoint_every=3", "train.precision=float32", "input.streams=2", "input.shuffle_buffer=8")
STREAMS, BATCH = 4, 8


@pytest.fixture(scope="module")
def tars(shards: Path, media: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clips in tars of three samples."""
    from click.testing import CliRunner

    from mbt.cli import cli

    folder = tmp_path_factory.mktemp("tars") / "set"
    lists = ["--list", str(media / "clips.csv"), "--labels", str(media / "labels.csv"), "--source", str(media / "media")]
    options = ["--short-side", "64", "--shard-samples", "3", "--out", str(folder)]
    assert CliRunner().invoke(cli, ["prep", "custom", *lists, *options]).exit_code == 0
    return folder


def plan(samples: int, shard_of: np.ndarray, buffer: int = 8) -> TrainPlan:
    return TrainPlan(3, samples, BATCH, order=Streamed(shard_of, STREAMS, buffer, BATCH))


def views(folder: Path, steps: range, rank: int = 0, world_size: int = 1, max_corrupt: float = 0.0) -> list[RawBatch]:
    with ShardStream(f"file://{folder}", "train") as split:
        streamed = plan(len(split), split.shard_of)
        how: Inputs = tiny().inputs(split.info)
        corrupt = CorruptSamples(split, max_corrupt)
        return list(TrainStream(split, how, streamed, True, corrupt, rank, world_size).batches(steps))


def same(first: RawBatch, second: RawBatch) -> bool:
    rows = first.plan.rows.tolist() == second.plan.rows.tolist()
    return rows and first.jpegs == second.jpegs and np.array_equal(first.spec, second.spec)  # type: ignore[arg-type]


@pytest.mark.parametrize("buffer", [1, 16, 10_000])
def test_an_epoch_sees_no_sample_twice_and_reads_each_tar_in_order(buffer: int) -> None:
    shard_of = np.repeat(np.arange(25), 40)
    order = Streamed(shard_of, STREAMS, buffer, BATCH)
    seen: set[int] = set()
    for seed in range(3):
        rows = order(np.random.default_rng(seed))
        assert len(rows) == len(set(rows.tolist())) == 1000
        pieces = order.pieces(np.random.default_rng(seed))
        assert pieces.shape == (STREAMS, 250)
        for stream, piece in enumerate(pieces):
            own = rows.reshape(-1, STREAMS, BATCH // STREAMS)[:, stream].ravel()
            assert sorted(own.tolist()) == sorted(piece.tolist())
            arrival = {row: at for at, row in enumerate(piece.tolist())}
            lead = [arrival[row] - at for at, row in enumerate(own.tolist())]
            assert max(lead) < max(buffer // STREAMS, 2)
            tars = shard_of[piece]
            assert len(np.flatnonzero(np.diff(tars))) <= len(set(tars.tolist())) - 1
            assert all(np.all(np.diff(piece[tars == tar]) == 1) for tar in set(tars.tolist()))
        seen.add(int(rows[0]))
    assert len(seen) == 3


def test_each_epoch_drops_other_samples() -> None:
    streamed = plan(1003, np.repeat(np.arange(59), 17))
    left = [set(range(1003)) - set(streamed.rows(epoch).tolist()) for epoch in range(4)]
    assert [len(rows) for rows in left] == [3] * 4
    assert len({frozenset(rows) for rows in left}) > 1


def test_mixing_grows_with_the_buffer() -> None:
    """How far the samples of a stream move from their position in the tars."""

    def spread(buffer: int) -> float:
        order = Streamed(np.repeat(np.arange(20), 50), 1, buffer, BATCH)
        (piece,) = order.pieces(np.random.default_rng(0))
        arrival = np.argsort(piece)
        return float(np.abs(arrival[order(np.random.default_rng(0))] - np.arange(1000)).mean())

    assert spread(1) == 0
    assert 0 < spread(20) < spread(200)


def test_views_equal_those_of_random_access(tars: Path) -> None:
    """Across the end of an epoch."""
    found = views(tars, range(5))
    with ShardReader(tars, "train") as reader:
        how = tiny().inputs(reader.info)
        streamed = plan(len(reader), reader.shard_of)
        wanted = random_access.train_batches(
            reader, how, [streamed.step(step) for step in range(5)], True, CorruptSamples(reader, 0.0)
        )
        assert streamed.steps_per_epoch == 2
        assert all(same(*pair) for pair in zip(found, wanted, strict=True))


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_see_their_parts_of_the_batch(tars: Path, world_size: int) -> None:
    whole = views(tars, range(4))
    ranks = [views(tars, range(4), rank, world_size) for rank in range(world_size)]
    for step, batch in enumerate(whole):
        parts = [own[step] for own in ranks]
        assert [row for part in parts for row in part.plan.rows.tolist()] == batch.plan.rows.tolist()
        assert [jpeg for part in parts for jpeg in part.jpegs] == batch.jpegs


@pytest.mark.parametrize("first", [1, 2, 3])
def test_reading_can_resume_at_any_step(tars: Path, first: int) -> None:
    whole = views(tars, range(4))
    assert all(same(*pair) for pair in zip(views(tars, range(first, 4)), whole[first:], strict=True))


def test_replacements_do_not_depend_on_where_reading_begins(
    tars: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The last sample of one tar and the last two of another are replaced by readable samples later in their streams."""
    copy = Path(shutil.copytree(tars, tmp_path / "copy"))
    for row in (2, 7, 8):
        no_json(copy, row)
    whole, found = views(tars, range(4)), views(copy, range(4), max_corrupt=0.2)
    assert capfd.readouterr().err.count("is corrupt") == 3
    with ShardReader(tars, "train") as reader:
        streamed = plan(len(reader), reader.shard_of)
    for step, (before, after) in enumerate(zip(whole, found, strict=True)):
        pieces = streamed.order.pieces(streamed.order_rng(step // 2))  # type: ignore[union-attr]
        for place, (old, new) in enumerate(zip(before.plan.rows.tolist(), after.plan.rows.tolist(), strict=True)):
            piece = pieces[place // (BATCH // STREAMS)].tolist()
            at = piece.index(old)
            later = [row for row in piece[at:] + piece[:at] if row not in (2, 7, 8)]
            assert new == later[0]
    for first in (1, 3):
        again = views(copy, range(first, 4), max_corrupt=0.2)
        assert all(same(*pair) for pair in zip(again, found[first:], strict=True))
    with pytest.raises(ShardError, match="of the 20 samples"):
        views(copy, range(4), max_corrupt=0.05)


@pytest.mark.parametrize("batch_size", [3, 8, 100])
def test_evaluation_sees_every_view_once(tars: Path, batch_size: int) -> None:
    with ShardStream(f"file://{tars}", "train") as split, ShardReader(tars, "train") as reader:
        how = tiny().inputs(split.info)
        found = list(eval_batches(split, how, np.arange(20), 4, batch_size))
        assert [len(batch.plan.rows) for batch in found[:-1]] == [batch_size] * (len(found) - 1)
        wanted = {row: view for row, *view in map(list, by_view(random_access.eval_batches(reader, how, np.arange(20), 4, 80)))}
        seen = list(by_view(found))
        assert sorted(row for row, _, _ in seen) == sorted(list(range(20)) * 4)
        assert {row: view for row, *view in map(list, seen)} == wanted


def by_view(batches: object) -> Iterator[tuple[int, list[bytes], bytes]]:
    """Row, frames and log-mel of each view."""
    for batch in batches:  # type: ignore[attr-defined]
        count = len(batch.jpegs) // len(batch.plan.rows)
        for place, row in enumerate(batch.plan.rows.tolist()):
            yield row, batch.jpegs[place * count : (place + 1) * count], batch.spec[place].tobytes()


def test_a_run_that_streams_resumes_exactly(tars: Path, tmp_path: Path) -> None:
    """Also with another kind of URL for the same shards. Evaluation equals that of the folder."""
    url = f"file://{tars}"
    train(url, tmp_path / "whole", tiny(*RUN))
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/step-6")
    train(f"pipe:cat {tars}/{{}}", tmp_path / "run", tiny(*RUN), resume=True)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert f"# mbt train --data {url}" in (tmp_path / "whole/config.toml").read_text()
    streamed, read = (evaluate(tmp_path / "whole", place, "eval", 4, 8) for place in (url, tars))
    assert {**streamed, "data": None} == {**read, "data": None}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("input.streams=3",), r"input\.streams 3 must divide train\.batch_size 8 and be divisible by the number of ranks, 1"),
        (("train.batch_size=24",), "20 samples cannot fill a batch of 24"),
        (("train.balanced_sampling=true",), r"train\.balanced_sampling needs random access"),
    ],
)
def test_unstreamable_recipes_are_rejected(settings: tuple[str, ...], message: str, tars: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        train(f"file://{tars}", tmp_path / "run", tiny(*RUN, *settings))
    assert not (tmp_path / "run").exists()


def test_more_ranks_than_streams_are_rejected() -> None:
    with pytest.raises(ConfigError, match=r"the number of ranks, 16\. For example, --set input\.streams=16"):
        check_streams(8, 64, 1000, 16)
    check_streams(16, 64, 1000, 16)


def test_prefetching_stops_even_if_nothing_was_read() -> None:
    """At most the item in progress is finished."""
    made: list[int] = []

    def slow(number: int) -> int:
        time.sleep(0.05)
        made.append(number)
        return number

    items = Prefetcher(map(slow, range(100)), 20)
    items.close()
    time.sleep(0.3)
    assert len(made) <= 1


def test_a_missing_tar_ends_the_run_with_a_message(tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbt.manifests.reading.remote.time.sleep", lambda seconds: None)
    copy = Path(shutil.copytree(tars, tmp_path / "copy"))
    (copy / "train-000003.tar").unlink()
    with pytest.raises(ShardError, match=r"cannot read train-000003\.tar from file://"):
        train(f"file://{copy}", tmp_path / "run", tiny(*RUN))
    deadline = time.monotonic() + 10
    while any(t.name.startswith("ThreadPoolExecutor") for t in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert time.monotonic() < deadline


def test_only_the_given_number_of_items_is_computed_ahead() -> None:
    made: list[int] = []
    items = Prefetcher((made.append(n) or n for n in range(100)), 5)  # type: ignore[func-returns-value]
    assert [next(items) for _ in range(10)] == list(range(10))
    items.close()
    assert 10 <= len(made) <= 15
    assert list(Prefetcher(iter(range(7)), 20)) == list(range(7))


def test_round_robin_continues_until_all_streams_are_exhausted() -> None:
    assert list(round_robin([iter("abcde"), iter(""), iter("vw")], 2)) == list("abvwcde")
