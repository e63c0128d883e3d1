"""Which clips take room under a cap, and which no longer need their media."""

import json
from pathlib import Path

from mbt.manifests.clips import Clip
from mbt.prep.media.mel_sums import MelSums
from mbt.prep.state.ledger import Attempt
from mbt.prep.state.selection import ASSIGNMENT_FILE, Selection, packed_keys, select_clips
from mbt.prep.state.shard_record import Failure, ShardRecord, record_file

SHARD = "train-000000.tar"


def test_clips_that_may_be_decoded_again_need_their_media(tmp_path: Path) -> None:
    codes = {"b": "decode.error", "c": "decode.timeout"}
    failures = tuple(Failure(key=key, stage="pack", code=code, message="") for key, code in codes.items())
    failures += (Failure(key="d", stage="fetch", code="fetch.pending", message=""),)
    record = ShardRecord(files=(), rows=({"key": "a"},), failures=failures, mel=MelSums())
    path = record_file(tmp_path, SHARD)
    path.parent.mkdir(parents=True)
    path.write_text(record.model_dump_json())
    (tmp_path / ASSIGNMENT_FILE).write_text(json.dumps({SHARD: list("abcd"), "train-000001.tar": ["e"]}))
    assert packed_keys(tmp_path, set("abcde")) == {"a", "b"}
    assert packed_keys(tmp_path, {"b", "c"}) == {"b"}
    assert packed_keys(tmp_path, set("abcde"), {"decode"}) == {"a"}


def test_removed_clips_leave_their_room_to_others() -> None:
    clips = [Clip(key, key, 0, 1000, "train", (0,)) for key in "abcd"]
    ledger = {clip.key: Attempt(key=clip.key, source="s", path="raw/x") for clip in clips}
    selected = select_clips(clips, ledger, {"b"}, Selection({"train": 2}, 1), lambda clip: clip.key == "a")
    assert [clip.key for _, clip in selected] == ["a", "c", "d"], "a is listed as removed, and b came late"
