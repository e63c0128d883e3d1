"""Balanced subsets: compared with a plain greedy loop, and with known counts of the official list."""

import hashlib
import lzma
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mbt.manifests.balance import ORDERS, Balance, Order, balanced_rows, ordered_rows, seeded_positions, spread_rows
from mbt.manifests.clips import SCHEMA
from mbt.manifests.lists.audioset import audioset_labels, segments_table

EXCERPT = Path(__file__).parents[1] / "excerpts" / "audioset" / "unbalanced_train_segments.csv"
CLASSES = 6
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A busy machine is not a failure."""
LABELS = st.lists(st.sets(st.integers(0, CLASSES - 1), min_size=1, max_size=4), min_size=1, max_size=60)


def clips(labels: list[set[int]], seed: int = 0) -> pa.Table:
    keys = [f"clip{number:03}" for number in np.random.default_rng(seed).permutation(len(labels))]
    rows = [
        {"key": key, "video_id": key, "start_ms": 0, "end_ms": 1000, "split": "train", "labels": sorted(of_clip)}
        for key, of_clip in zip(keys, labels, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def greedy(table: pa.Table, cap: int, order: list[int]) -> list[int]:
    """The rule as a plain loop."""
    counts = [0] * CLASSES
    selected = []
    for row in order:
        labels = table["labels"][row].as_py()
        if all(counts[label] < cap for label in labels):
            selected.append(row)
            for label in labels:
                counts[label] += 1
    return sorted(selected)


@unhurried
@given(LABELS, st.integers(1, 30), st.integers(0, 5))
def test_each_order_equals_the_plain_loop(labels: list[set[int]], cap: int, seed: int) -> None:
    table = clips(labels, seed)
    keys = table["key"].to_pylist()
    frequency = [sum(label in of_clip for of_clip in labels) for label in range(CLASSES)]
    sums = [sum(frequency[label] for label in of_clip) for of_clip in labels]
    orders = {
        "common-first": sorted(range(len(labels)), key=lambda row: (-sums[row], keys[row])),
        "rare-first": sorted(range(len(labels)), key=lambda row: (sums[row], keys[row])),
        "list": list(range(len(labels))),
        "random": np.random.default_rng(seed).permutation(len(labels)).tolist(),
    }
    assert set(orders) == set(ORDERS)
    for name, order in orders.items():
        rows = balanced_rows(table, Balance(cap, name, seed), CLASSES)  # type: ignore[arg-type]
        assert rows.tolist() == greedy(table, cap, order), name


@unhurried
@given(LABELS, st.integers(1, 30))
def test_no_class_exceeds_the_cap_and_no_clip_can_be_added(labels: list[set[int]], cap: int) -> None:
    selected = set(balanced_rows(clips(labels), Balance(cap), CLASSES).tolist())
    counts = [sum(label in labels[row] for row in selected) for label in range(CLASSES)]
    assert max(counts) <= cap
    assert all(any(counts[label] == cap for label in labels[row]) for row in set(range(len(labels))) - selected)


def survivors(table: pa.Table, cap: int, rows: list[int], alive: list[bool]) -> set[str]:
    """Keys of the available clips that a plain loop over the rows selects; each split has its own cap."""
    counts: dict[tuple[str, int], int] = {}
    selected = set()
    for row in rows:
        places = [(table["split"][row].as_py(), label) for label in table["labels"][row].as_py()]
        if alive[row] and all(counts.get(place, 0) < cap for place in places):
            selected.add(table["key"][row].as_py())
            counts |= {place: counts.get(place, 0) + 1 for place in places}
    return selected


@unhurried
@given(LABELS, st.integers(1, 20), st.sampled_from(ORDERS), st.floats(0, 1), st.floats(0, 1), st.integers(0, 1000))
def test_spread_rows_select_the_same_clips(
    labels: list[set[int]], cap: int, order: Order, share_alive: float, guessed: float, seed: int
) -> None:
    """Whatever share survives, and whatever share was guessed."""
    random = np.random.default_rng(seed)
    table = clips(labels, seed)
    splits = pa.array(random.choice(["train", "eval"], len(labels)))
    table = table.set_column(table.schema.get_field_index("split"), SCHEMA.field("split"), splits)
    table = table.take(pa.array(ordered_rows(table, Balance(cap, order, seed), CLASSES)))
    alive = (random.random(len(labels)) < share_alive).tolist()
    positions = seeded_positions(seed, table["key"].to_pylist())
    rows = spread_rows(table, cap, CLASSES, positions, random.random(len(labels)) < guessed)
    assert sorted(rows) == list(range(len(labels)))
    considered = list(range(len(labels)))
    assert survivors(table, cap, rows.tolist(), alive) == survivors(table, cap, considered, alive)


def test_every_thousand_of_spread_rows_is_a_fair_sample() -> None:
    """Half of 20,000 clips have class 0, capped at 4,000, and are considered first; a tenth is dead."""
    count, cap = 20_000, 4_000
    table = clips([{0, 1} if row < count // 2 else {2 + row % 4} for row in range(count)])
    alive = np.random.default_rng(1).random(count) < 0.9
    positions = seeded_positions(0, table["key"].to_pylist())
    rows = spread_rows(table, cap, CLASSES, positions, alive)
    needed = count // 2 + int(cap / 0.9)
    shares = [(rows[start : start + 1000] < count // 2).mean() for start in range(0, needed - 999, 1000)]
    expected = (cap / 0.9) / needed
    assert max(abs(share - expected) for share in shares) < 0.06
    assert (rows[needed + 200 :] < count // 2).all(), "competitors that are probably not needed come last"
    assert rows.tolist() == spread_rows(table, cap, CLASSES, positions, alive).tolist()


def test_seeded_positions_are_even_and_depend_on_seed_and_name() -> None:
    names = [f"video{number}" for number in range(10_000)]
    positions = seeded_positions(0, names)
    assert np.histogram(positions, 10, (0, 1))[0].std() < 60, "binomial: 30"
    assert positions[:50].tolist() == seeded_positions(0, names[:50]).tolist()
    assert not np.isin(positions, seeded_positions(1, names)).any()
    first = int.from_bytes(hashlib.sha256(b"0:video0").digest()[:8], "big")
    assert positions[0] == first / 2**64


@pytest.mark.parametrize(
    ("cap", "order", "selected", "speech", "music"),
    [
        (50, "common-first", 320, 50, 50),
        (50, "rare-first", 364, 50, 50),
        (50, "list", 355, 50, 50),
        (160, "common-first", 540, 160, 160),
        (160, "rare-first", 544, 160, 143),
        (160, "list", 544, 160, 157),
    ],
)
def test_subsets_of_an_excerpt_of_the_official_list(cap: int, order: Order, selected: int, speech: int, music: int) -> None:
    """The counts are those of a loop over the rows of the file, as Python's csv module reads them."""
    table = segments_table(EXCERPT, "train")
    rows = balanced_rows(table, Balance(cap, order), 527)
    labels = table["labels"].combine_chunks().take(pa.array(rows)).flatten().to_pylist()
    index = audioset_labels().index
    assert (len(rows), labels.count(index["/m/09x0r"]), labels.count(index["/m/04rlf"])) == (selected, speech, music)


@pytest.fixture(scope="module")
def unbalanced(official_lists: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    packed = official_lists / "audioset" / "unbalanced_train_segments.csv.xz"
    if not packed.exists():
        pytest.skip(f"no {packed}")
    path = tmp_path_factory.mktemp("lists") / "unbalanced_train_segments.csv"
    with lzma.open(packed) as source, path.open("wb") as target:
        shutil.copyfileobj(source, target)
    return path


COMMAND = """
import pathlib, sys
from mbt.cli import cli
cli(sys.argv[1:], standalone_mode=False)
status = pathlib.Path("/proc/self/status").read_text().split()
print(status[status.index("VmHWM:") + 1])
"""


@pytest.mark.slow
def test_as500k_of_the_official_list(unbalanced: Path, tmp_path: Path) -> None:
    """557,794 clips, with Speech and Music at the cap; the command takes less than 2 GB and about 10 s of CPU time."""
    arguments = ["prep", "audioset", "--subset", "as500k", "--balance", "list", "--list", unbalanced, "--stage", "plan"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *map(str, arguments), "--out", str(tmp_path / "set")],
        check=True,
        capture_output=True,
        text=True,
    )
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime < 20, "10 s on a quiet machine"
    assert int(done.stdout.splitlines()[-1]) * 1024 < 2e9
    table = pa.parquet.read_table(tmp_path / "set" / "clips.parquet")
    assert table.num_rows == 557_794
    counts = np.bincount(table["labels"].combine_chunks().flatten().to_numpy(), minlength=527)
    assert counts.max() == 200_000
    assert (counts == 200_000).sum() == 2
