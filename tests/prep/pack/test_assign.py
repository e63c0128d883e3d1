"""Which clips go into which shard."""

import hashlib
import json
from pathlib import Path

import pytest

from mbt.manifests.errors import InputError
from mbt.prep.pack.assign import Assignment, packing_sequence
from mbt.prep.state.ledger import Attempt, late_keys
from mbt.prep.state.settings import PackSettings

SETTINGS = PackSettings(shard_samples=3, seed=5)


def assignment(folder: Path) -> Assignment:
    return Assignment(folder, SETTINGS)


def shuffled(keys: str) -> list[str]:
    return sorted(keys, key=lambda key: hashlib.sha256(f"5:{key}".encode()).hexdigest())


def test_late_clips_follow_those_that_came_on_time() -> None:
    assert "".join(packing_sequence("abcdef", {"a", "d"})) == "bcefad"


def test_a_clip_is_late_if_its_first_answer_was_a_failure() -> None:
    def row(key: str, time: float, code: str = "ok", action: str = "") -> Attempt:
        return Attempt(key=key, source="s", time=time, code=code, action=action)

    rows = [
        row("late", 2.0),
        row("late", 1.0, "bytes.403", "bytes"),
        row("on time", 1.0),
        row("on time", 2.0, "perm.gone", "permanent"),
        row("blocked", 1.0, "block.bot", "block"),
        row("blocked", 2.0),
        row("never", 1.0, "perm.gone", "permanent"),
    ]
    assert late_keys(rows) == late_keys(reversed(rows)) == {"late", "never"}


def test_shards_are_chunks_of_the_sequence_and_shuffled_inside(tmp_path: Path) -> None:
    made = assignment(tmp_path)
    made.extend(dict.fromkeys("abcdefg", "train") | {"x": "eval"})
    wanted = {"eval-000000.tar": "x", "train-000000.tar": "abc", "train-000001.tar": "def", "train-000002.tar": "g"}
    assert made.shards == {name: shuffled(keys) for name, keys in wanted.items()}


def test_membership_does_not_depend_on_when_a_shard_was_frozen(tmp_path: Path) -> None:
    """A run that freezes shards while clips arrive gives the shards of a run that packs afterwards."""
    at_once, bit_by_bit = assignment(tmp_path / "a"), assignment(tmp_path / "b")
    at_once.extend(dict.fromkeys("abcdefgh", "train"))
    (tmp_path / "b/work").mkdir(parents=True)
    bit_by_bit.add("train", "abc")
    bit_by_bit.save()
    resumed = assignment(tmp_path / "b")
    resumed.add("train", ["f", "e", "d"])
    resumed.extend(dict.fromkeys("abcdefgh", "train"))
    assert resumed.shards == at_once.shards


def test_assigned_clips_stay_where_they_are(tmp_path: Path) -> None:
    """Also those of earlier versions, which cut shards from another order; a split's name may end in a number."""
    old = {"train-1-000000.tar": ["q", "a"], "train-000000.tar": ["z", "c"], "train-000001.tar": ["b"]}
    (tmp_path / "work").mkdir()
    (tmp_path / "work/assignment.json").write_text(json.dumps(old))
    made = assignment(tmp_path)
    made.extend(dict.fromkeys("abcz", "train") | {"d": "train-1", "e": "train", "q": "train-1"})
    made.save()
    assert json.loads((tmp_path / "work/assignment.json").read_text()) == {
        **old,
        "train-000002.tar": ["e"],
        "train-1-000001.tar": ["d"],
    }
    with pytest.raises(InputError, match="6 packed clips are not in the new plan, such as b"):
        made.check({"a"})


def test_a_failed_clip_that_is_packed_again_goes_into_a_further_shard(tmp_path: Path) -> None:
    made = assignment(tmp_path)
    made.extend(dict.fromkeys("abcd", "train"))
    assert made.pack_again("da", dict.fromkeys("abcd", "train")) == {"train-000002.tar": shuffled("ad")}
    assert assignment(tmp_path).shards == {
        "train-000000.tar": shuffled("bc"),
        "train-000001.tar": [],
        "train-000002.tar": shuffled("ad"),
    }
