"""`mbt prep report`: its counts for folders made by hand, at every stage of a run, and its page with hostile texts."""

import json
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mbt.manifests.clips import Clip, clip_table
from mbt.manifests.errors import InputError
from mbt.manifests.labels import Label, LabelSet
from mbt.prep.plan.changes import change_plan
from mbt.prep.plan.plan import Plan, write_plan
from mbt.prep.report.counts import make_report, wilson
from mbt.prep.report.model import Report
from mbt.prep.report.page import page
from mbt.prep.report.write import write_report
from mbt.prep.state.ledger import Attempt, Effort, LedgerReader, LedgerWriter
from tests.conftest import Collection, Door
from tests.site import Site

NOW = 1_700_000_000.0
HOUR = 3600.0
LABELS = LabelSet((Label("a", "Alpha"), Label("b", "Beta"), Label("c", "Gamma")))


def planned(folder: Path, labels: Sequence[tuple[int, ...]], cap: int | None = None, split: str = "train") -> list[str]:
    """Write a plan of clips SPLIT0, SPLIT1, ... with these labels, and return their keys."""
    clips = [Clip(f"{split}{i}", f"v{i}", 0, 10_000, split, of) for i, of in enumerate(labels)]
    caps = {} if cap is None else {split: cap}
    change_plan(folder, Plan(dataset="hand", task="multilabel", caps=caps), LABELS, clip_table(clips)).save(folder)
    return [clip.key for clip in clips]


def success(folder: Path, key: str, ago: float = HOUR, size: int = 10) -> Attempt:
    path = folder / "raw" / f"{key}.mp4"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x" * size)
    return Attempt(key=key, source="host", path=f"raw/{key}.mp4", size=size, time=NOW - ago)


def failure(key: str, code: str, action: str, final: bool = False, wait: float = 0.0, ago: float = HOUR) -> Attempt:
    made = NOW - ago
    return Attempt(
        key=key, source="host", code=code, action=action, message=f"why {key}", final=final, not_before=made + wait, time=made
    )


def write_ledger(folder: Path, *attempts: Attempt, worker: str = "fetch-0") -> None:
    with LedgerWriter(folder, worker) as writer:
        writer.append(list(attempts))


def test_a_plan_without_requests(tmp_path: Path) -> None:
    planned(tmp_path, [(0,), (0, 1), ()])
    report = make_report(tmp_path, NOW)
    train = report.splits["train"]
    assert (train.planned, train.asked, train.there, train.not_there, train.to_ask, train.packed) == (3, 0, 0, 0, 3, 0)
    assert train.alive is None
    assert [(row.planned, row.answered, row.share) for row in report.classes] == [(2, 0, None), (1, 0, None), (0, 0, None)]
    assert (report.pace.attempts, report.pace.overall, report.pace.eta_hours) == (0, None, None)
    assert "No clip has been requested yet." in page(report)


def test_a_report_in_the_middle_of_fetching(tmp_path: Path) -> None:
    """Every state of a clip occurs once or twice."""
    keys = planned(tmp_path, [(0,), (0, 1), (1,), (1,), (1,), (0,), (2,), (2,), (0,)])
    lost = success(tmp_path, keys[5])
    write_ledger(
        tmp_path,
        success(tmp_path, keys[0], size=100),
        success(tmp_path, keys[1], size=23),
        failure(keys[2], "perm.private", "permanent", final=True),
        failure(keys[3], "perm.private", "permanent", final=True),
        failure(keys[4], "later.live", "later", wait=24 * HOUR),
        lost,
        failure(keys[6], "net.timeout", "later"),
        failure("of_another_plan", "perm.private", "permanent", final=True),
    )
    (tmp_path / "raw" / f"{keys[5]}.mp4").unlink()
    report = make_report(tmp_path, NOW)
    train = report.splits["train"]
    assert (train.planned, train.asked, train.there, train.not_there) == (9, 7, 2, 5)
    assert train.to_ask == 4, "two never requested, the lost one, and the network failure"
    assert train.due_later == 1
    assert [(r.code, r.action, r.clips, r.final, r.example) for r in train.reasons] == [
        ("perm.private", "permanent", 2, 2, "why train2"),
        ("fetch.lost", "", 1, 0, "raw/train5.mp4 is gone or has changed since it was fetched"),
        ("later.live", "later", 1, 0, "why train4"),
        ("net.timeout", "later", 1, 0, "why train6"),
    ]
    assert train.alive is not None
    assert (train.alive.of, train.alive.share) == (4, 2 / 4), "the lost one and those that will be requested again do not count"
    assert [(row.name, row.planned, row.answered, row.there, row.share) for row in report.classes] == [
        ("Alpha", 4, 2, 2, 1.0),
        ("Beta", 4, 3, 1, 1 / 3),
        ("Gamma", 2, 0, 0, None),
    ]
    assert report.raw_bytes == 123


def test_a_clip_is_due_after_its_wait(tmp_path: Path) -> None:
    """The wait is an hour after the first failure and six hours after the second."""
    first, second = planned(tmp_path, [(), ()])
    write_ledger(tmp_path, failure(first, "unknown", "later", ago=5 * HOUR), failure(second, "unknown", "later", ago=9 * HOUR))
    write_ledger(tmp_path, failure(second, "unknown", "later", ago=5 * HOUR))
    train = make_report(tmp_path, NOW).splits["train"]
    assert (train.to_ask, train.due_later) == (1, 1)
    train = make_report(tmp_path, NOW + 1.5 * HOUR).splits["train"]
    assert (train.to_ask, train.due_later) == (2, 0)


def test_failures_that_will_be_retried_do_not_lower_the_share_that_is_alive(tmp_path: Path) -> None:
    """9 of 10 videos are served, but half of the transfers break off; "unavailable" counts as gone before it is confirmed."""
    keys = planned(tmp_path, [()] * 20)
    write_ledger(
        tmp_path,
        *(success(tmp_path, key) for key in keys[:9]),
        failure(keys[9], "confirm.unavailable", "confirm", wait=24 * HOUR),
        *(failure(key, "bytes.403", "bytes", wait=HOUR) for key in keys[10:16]),
        failure(keys[16], "unknown", "later", wait=HOUR),
        failure(keys[17], "env.client", "confirm", wait=24 * HOUR),
        failure(keys[18], "env.sabr", "later", wait=HOUR),
    )
    alive = make_report(tmp_path, NOW).splits["train"].alive
    assert alive is not None
    assert (alive.of, alive.share) == (10, 0.9)


def test_when_clips_are_due_for_a_retry(tmp_path: Path, mbt: Door) -> None:
    """Two clips in an hour and one in a day; a final one is never due."""
    keys = planned(tmp_path, [()] * 5)
    now = time.time()
    rows = [("bytes.403", "bytes", 1.0), ("bytes.403", "bytes", 1.1), ("later.live", "later", 24.0)]
    waiting = [
        Attempt(key=key, source="host", code=code, action=action, time=now, not_before=now + hours * HOUR)
        for key, (code, action, hours) in zip(keys, rows, strict=False)
    ]
    write_ledger(tmp_path, *waiting, replace(failure(keys[3], "perm.private", "permanent", final=True), time=now))
    train = make_report(tmp_path, now).splits["train"]
    assert (train.to_ask, train.due_later) == (1, 3)
    assert train.due_from is not None
    assert train.due_until is not None
    assert (train.due_from.timestamp(), train.due_until.timestamp()) == pytest.approx((now + HOUR, now + 24 * HOUR))
    reasons = {r.code: (r.clips, r.final, r.retry_from and r.retry_from.timestamp(), r.example_key) for r in train.reasons}
    assert reasons == {
        "bytes.403": (2, 0, pytest.approx(now + HOUR), keys[0]),
        "later.live": (1, 0, pytest.approx(now + 24 * HOUR), keys[2]),
        "perm.private": (1, 1, None, keys[3]),
    }
    first, last = (time.strftime("%Y-%m-%d %H:%M", time.gmtime(now + hours * HOUR + 59)) for hours in (1, 24))
    assert f"; 3 to retry later, due {first} to {last} UTC." in mbt("prep", "report", tmp_path).out
    assert f"<td>{last}</td><td>{keys[2]}</td>" in (tmp_path / "report.html").read_text()


def test_refusals_are_counted_by_reason(tmp_path: Path, mbt: Door) -> None:
    """Three rate limits, one of them for a video with two clips, and one block; their clips are not missing."""
    keys = planned(tmp_path, [()] * 4)
    write_ledger(
        tmp_path,
        *(replace(limited(key, ago, 0.0), lane="a") for key, ago in zip(keys, (300.0, 299.9, 200.0), strict=False)),
        replace(limited(keys[3], 300.0, 0.0), lane="b"),
        replace(failure(keys[3], "block.bot", "block", ago=9.0), lane="b", message="<robot>"),
    )
    report = make_report(tmp_path, NOW)
    assert [(r.code, r.action, r.times, r.example) for r in report.refusals] == [
        ("cool.rate", "cool", 3, f"why {keys[2]}"),
        ("block.bot", "block", 1, "<robot>"),
    ]
    assert report.splits["train"].reasons == ()
    assert "\nrefused requests: 3 cool.rate, 1 block.bot\n" in mbt("prep", "report", tmp_path).out
    assert '<td>block</td><td class="n">1</td><td>&lt;robot&gt;</td>' in page(report)


@pytest.mark.parametrize(("hits", "total"), [(8, 10), (1, 3), (0, 10), (10, 10), (18_589, 20_371)])
def test_the_interval_is_the_wilson_score_interval(hits: int, total: int) -> None:
    """Its ends are the roots of (p - share)^2 = z^2 p (1 - p) / n."""
    share, weight = wilson(hits, total), 1.959964**2 / total
    low, high = sorted(np.roots([1 + weight, -(2 * hits / total + weight), (hits / total) ** 2]))
    assert (share.of, share.share) == (total, hits / total)
    assert (share.low, share.high) == pytest.approx((low, high), abs=1e-9)


def test_the_interval_of_a_textbook_example() -> None:
    """8 of 10: 0.490 to 0.943."""
    assert (wilson(8, 10).low, wilson(8, 10).high) == pytest.approx((0.4902, 0.9433), abs=5e-5)


def test_pace(tmp_path: Path) -> None:
    """Six attempts of two workers, three in the last hour; one clip was requested twice; ten clips are left."""
    keys = planned(tmp_path, [()] * 15)
    write_ledger(
        tmp_path,
        success(tmp_path, keys[0], ago=10 * HOUR),
        failure(keys[1], "net.timeout", "later", ago=8 * HOUR),
        success(tmp_path, keys[2], ago=0.9 * HOUR),
        success(tmp_path, keys[3], ago=0.0),
    )
    write_ledger(
        tmp_path, success(tmp_path, keys[4], ago=5 * HOUR), success(tmp_path, keys[1], ago=0.5 * HOUR), worker="fetch-1"
    )
    pace = make_report(tmp_path, NOW).pace
    assert pace.attempts == 6
    assert pace.first is not None
    assert pace.last is not None
    assert (pace.first.timestamp(), pace.last.timestamp()) == (NOW - 10 * HOUR, NOW)
    assert pace.last_hour == pytest.approx(3.0)
    assert pace.overall == pytest.approx(5 / 10)
    assert pace.eta_hours == pytest.approx(10 / 3)
    spans = [(span.start_s / HOUR, span.there, span.not_there) for span in pace.spans if span.there or span.not_there]
    assert sum(there for _, there, _ in spans) == 5
    assert [(round(start, 6), missing) for start, _, missing in spans if missing] == [(2.0, 1)]

    long_after = make_report(tmp_path, NOW + 2 * HOUR).pace
    assert long_after.last_hour == 0.0
    assert long_after.eta_hours == pytest.approx(10 / 0.5), "at the overall pace"


def test_the_pace_of_a_run_that_just_began(tmp_path: Path) -> None:
    """Three attempts in the 6 minutes since the first are 30 per hour. A single attempt has no pace."""
    keys = planned(tmp_path, [()] * 64)
    write_ledger(tmp_path, success(tmp_path, keys[0], ago=360.0))
    assert make_report(tmp_path, NOW - 360.0).pace.eta_hours is None
    write_ledger(tmp_path, *(success(tmp_path, key, ago=ago) for key, ago in zip(keys[1:4], (200.0, 100.0, 0.0), strict=True)))
    pace = make_report(tmp_path, NOW).pace
    assert pace.last_hour == pytest.approx(30.0)
    assert pace.overall == pytest.approx(30.0)
    assert pace.eta_hours == pytest.approx(60 / 30)


def test_a_cap_leaves_fewer_clips_to_fetch(tmp_path: Path) -> None:
    """At most two clips per class; requested clips are available: one more of class 0 and all of class 1 are expected."""
    keys = planned(tmp_path, [(0,), (0,), (0,), (0,), (1,), (1,)], cap=2)
    planned(tmp_path, [(0,)] * 5, split="eval")
    write_ledger(tmp_path, success(tmp_path, keys[0]))
    report = make_report(tmp_path, NOW)
    assert (report.splits["train"].planned, report.splits["train"].to_ask) == (6, 1 + 2)
    assert report.splits["eval"].to_ask == 5

    write_ledger(tmp_path, success(tmp_path, keys[1]))
    assert make_report(tmp_path, NOW).splits["train"].to_ask == 2, "class 0 is full"


def test_a_cap_without_available_clips(tmp_path: Path) -> None:
    """All clips will be requested if none is available."""
    keys = planned(tmp_path, [(0,)] * 6, cap=2)
    write_ledger(tmp_path, failure(keys[0], "perm.private", "permanent", final=True))
    assert make_report(tmp_path, NOW).splits["train"].to_ask == 5


def test_a_torn_line_and_an_empty_ledger(tmp_path: Path) -> None:
    keys = planned(tmp_path, [(0,), (0,)])
    ledger = tmp_path / "work" / "ledger" / "fetch-0.jsonl"
    write_ledger(tmp_path)
    assert ledger.read_bytes() == b""
    assert make_report(tmp_path, NOW).splits["train"].asked == 0
    write_ledger(tmp_path, success(tmp_path, keys[0]), success(tmp_path, keys[1]))
    whole = ledger.read_bytes()
    ledger.write_bytes(whole[:-30] + b"\xff")
    report = make_report(tmp_path, NOW)
    assert (report.splits["train"].asked, report.splits["train"].to_ask, report.pace.attempts) == (1, 1, 1)


def on_lane(lane: str, *rows: Attempt | tuple[Attempt, Effort]) -> list[Attempt | tuple[Attempt, Effort]]:
    """The rows, fetched over this lane."""
    return [replace(row, lane=lane) if isinstance(row, Attempt) else (replace(row[0], lane=lane), row[1]) for row in rows]


def limited(key: str, ago: float, until: float) -> Attempt:
    """A rate limit at NOW - `ago`, and a pause until NOW + `until`."""
    return replace(failure(key, "cool.rate", "cool", ago=ago), not_before=NOW + until)


def test_lanes(tmp_path: Path) -> None:
    """Lanes of several workers: one that paused twice, one that was blocked and is used again, and one that is blocked."""
    keys = planned(tmp_path, [()] * 12)
    one = Effort(requests=4, transferred=1_500_000)
    with LedgerWriter(tmp_path, "fetch-2") as writer:
        first = on_lane(
            "2.a",
            (success(tmp_path, keys[0], ago=4 * HOUR), one),
            (failure(keys[1], "perm.private", "permanent", final=True, ago=4 * HOUR - 20), Effort()),
            (success(tmp_path, keys[2], ago=4 * HOUR - 60), one),
            (limited(keys[3], 4 * HOUR - 80, -2 * HOUR), Effort(requests=1, transferred=7)),
            (limited(keys[4], 4 * HOUR - 80, -2 * HOUR), Effort()),
            (success(tmp_path, keys[3], ago=HOUR - 10), one),
            (failure(keys[4], "net.timeout", "later", ago=HOUR - 40), Effort()),
            (limited(keys[5], 900.0, 6300.0), Effort(requests=2)),
            success(tmp_path, keys[6], ago=900.0 - 0.01),
        )
        writer.append(first)
        writer.append(on_lane("10.a", replace(failure(keys[7], "block.bot", "block", ago=HOUR), not_before=NOW + 5 * HOUR)))
        writer.append(on_lane("10.a", success(tmp_path, keys[8], ago=60.0)))
    with LedgerWriter(tmp_path, "fetch-10") as writer:
        writer.append(on_lane("10.b", replace(failure(keys[9], "block.bot", "block", ago=9.0), not_before=NOW - 9 + 6 * HOUR)))
        writer.append(on_lane("10.c", replace(failure(keys[9], "block.bot", "block", ago=8.0), not_before=0.0)))
        writer.append(on_lane("1.a", (success(tmp_path, keys[10]), Effort(requests=1, transferred=9))))
    (tmp_path / "raw" / f"{keys[10]}.mp4").unlink()
    report = make_report(tmp_path, NOW)
    assert [lane.name for lane in report.lanes] == ["1.a", "2.a", "10.a", "10.b", "10.c"]
    lost, paused, unblocked, blocked, ended = report.lanes
    assert (lost.attempts, lost.there, lost.share, lost.requests, lost.transferred) == (1, 0, 0.0, 1, 9)
    assert (lost.last_hour, lost.hourly, lost.rests, lost.resting) == (0, None, 0, None)

    assert (paused.attempts, paused.there, paused.share) == (6, 4, pytest.approx(4 / 6))
    assert (paused.requests, paused.transferred) == (3 * 4 + 1 + 2, 3 * 1_500_000 + 7)
    assert paused.last_hour == 3
    assert paused.hourly == pytest.approx(3 / (20 + 40 + 30) * HOUR), "the pauses and the long gap do not count"
    assert paused.rests == 2, "two clips share one pause"
    assert paused.resting is not None
    assert (paused.resting.until.timestamp(), paused.resting.code) == (NOW + 6300, "cool.rate")
    assert paused.resting.message == f"why {keys[5]}"

    assert (unblocked.attempts, unblocked.there, unblocked.rests, unblocked.resting) == (1, 1, 1, None)
    assert (blocked.attempts, blocked.share, blocked.rests) == (0, None, 1)
    assert blocked.resting is not None
    assert blocked.resting.code == "block.bot"
    assert (ended.rests, ended.resting) == (0, None), "the run stopped without a pause"
    assert make_report(tmp_path, NOW + 6300).lanes[1].resting is None, "it is over"


def test_lanes_in_the_table_page_and_json(tmp_path: Path, mbt: Door) -> None:
    """Lanes are in the table, the page and the file; without lanes there is no such section."""
    keys = planned(tmp_path, [()] * 3)
    write_ledger(tmp_path, success(tmp_path, keys[0]))
    assert "\nlane" not in mbt("prep", "report", tmp_path).out
    assert "Lanes" not in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "report.json").read_text())["lanes"] == []

    until, why = time.time() + HOUR, "<b>429</b>"
    refused = replace(limited(keys[2], 0.0, 0.0), lane="x\x1b[31m", not_before=until, message=why)
    with LedgerWriter(tmp_path, "fetch-0") as writer:
        writer.append([(replace(success(tmp_path, keys[1]), lane="far"), Effort(requests=4, transferred=1_234_567)), refused])
    far = ["far", "1", "1", "100.0%", "1.23 MB", "4", "0", "-", "0", "-"]
    pause = time.strftime("%Y-%m-%d %H:%M, cool.rate", time.gmtime(until))
    near = ["x?[31m", "0", "0", "-", "0 B", "0", "0", "-", "1", pause]
    lines = mbt("prep", "report", tmp_path).out.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("lane"))
    assert [re.split("  +", line) for line in lines[head + 1 : head + 3]] == [far, near]
    assert len({len(line) for line in lines[head : head + 3]}) == 1
    text = (tmp_path / "report.html").read_text()
    rows = [re.findall("<td[^>]*>([^<]*)</td>", line) for line in text.partition("<h2>Lanes</h2>")[2].splitlines()]
    assert rows[3:5] == [[*far, ""], [*near, "&lt;b&gt;429&lt;/b&gt;"]]
    assert why not in text
    assert json.loads((tmp_path / "report.json").read_text())["lanes"][1]["resting"]["message"] == why


def test_lanes_of_a_real_run(tmp_path: Path, mbt: Door, site: Site) -> None:
    """Twelve videos over two lanes: three are private, and one lane is rate-limited after its second video."""
    rows = [f"video{number:02},0,1,train,a" for number in range(12)]
    (tmp_path / "clips.csv").write_text("\n".join(["video_id,start,end,split,labels", *rows]) + "\n")
    (tmp_path / "labels.csv").write_text("id\na\n")
    (tmp_path / "lanes.toml").write_text("".join(f'[[lane]]\nname = "{n}"\nytdlp = "--proxy http://{n}:1"\n' for n in "ab"))
    site.delay_s = 0.05
    site.errors = {f"video{number:02}": ("Private video", "") for number in (2, 5, 7)}

    def refuses(options: dict[str, object]) -> str | None:
        mine = [one for one in site.options if one["proxy"] == "http://a:1"]
        return "HTTP Error 429: Too Many Requests" if options["proxy"] == "http://a:1" and len(mine) > 2 else None

    site.refuses = refuses
    lists = ["--list", tmp_path / "clips.csv", "--labels", tmp_path / "labels.csv", "--out", tmp_path / "out"]
    url = "https://www.youtube.com/watch?v={video_id}"
    run = ["prep", "custom", *lists, "--source", url, "--sleep", 0, "--lanes", tmp_path / "lanes.toml"]
    assert mbt(*run, "--stage", "plan").code == 0
    assert mbt(*run, "--stage", "fetch").out == "fetch: 9 clips found, 3 missing\n"
    now = time.time()
    a, b = make_report(tmp_path / "out", now).lanes
    assert (a.name, a.attempts, a.rests, b.name, b.attempts, b.rests) == ("a", 2, 1, "b", 10, 0)
    assert a.there + b.there == 9
    assert a.resting is not None
    assert a.resting.until.timestamp() == pytest.approx(now + HOUR, abs=5)
    assert "429" in a.resting.message
    assert b.resting is None


def test_efforts_are_read_as_they_were_written(tmp_path: Path) -> None:
    took = Effort(http_status=429, warnings=("one", "two"), requests=4, transferred=1_500_000, transfer_s=2.5)
    with LedgerWriter(tmp_path, "fetch-0") as writer:
        writer.append([(limited("k", 0.0, 1.0), took), success(tmp_path, "l")])
    read = list(LedgerReader(tmp_path).new_with_effort())
    assert read == [(limited("k", 0.0, 1.0), took), (success(tmp_path, "l"), Effort())]
    assert list(LedgerReader(tmp_path).new()) == [attempt for attempt, _ in read]


def test_a_packed_folder(packed: Path, collection: Collection, tmp_path: Path, mbt: Door) -> None:
    """Eleven clips: one has no file, two cannot be decoded, eight are in shards. Only the two report files are written."""
    before = sorted(packed.rglob("*"))
    done = mbt("prep", "report", packed, "--out", tmp_path / "new" / "folder")
    assert done.code == 0, done.err
    assert sorted(packed.rglob("*")) == before
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == ["report.html", "report.json"]
    report = Report.model_validate_json((tmp_path / "new" / "folder" / "report.json").read_bytes())
    counts = {
        name: (split.planned, split.there, split.packed, {r.code: r.clips for r in (*split.reasons, *split.pack_failures)})
        for name, split in report.splits.items()
    }
    assert counts == {
        "train": (7, 7, 6, {"clip.no_audio": 1}),
        "eval": (4, 3, 2, {"local.missing": 1, "decode.unreadable": 1}),
    }
    assert {name: split.to_ask for name, split in report.splits.items()} == {"train": 0, "eval": 0}
    assert "; 0 clips to fetch." in done.out
    codes = {code for *_, of in counts.values() for code in of}
    assert codes == set(pq.read_table(packed / "failures.parquet")["code"].to_pylist())
    assert report.packed_bytes == sum(tar.stat().st_size for tar in packed.glob("*.tar"))
    used = {path.stat().st_size: path for path in collection.source.rglob("*.*")}.values()
    assert report.raw_bytes == sum(path.stat().st_size for path in used), "the file of two clips counts once"
    rows = [line.split() for line in done.out.splitlines()]
    assert ["train", "7", "7", "7"] in [row[:4] for row in rows]


def test_a_report_in_the_middle_of_packing(packed: Path, tmp_path: Path) -> None:
    """A shard without its record is unfinished; clips in finished shards stay available when their media are gone."""
    folder = tmp_path / "copy"
    (folder / "work" / "ledger").mkdir(parents=True)
    for path in packed.rglob("*"):
        if path.is_file():
            (folder / path.relative_to(packed)).parent.mkdir(parents=True, exist_ok=True)
            (folder / path.relative_to(packed)).write_bytes(path.read_bytes())
    assignment = json.loads((folder / "work" / "assignment.json").read_text())
    unfinished = max(name for name in assignment if name.startswith("train"))
    (folder / "work" / f"{unfinished}.json").unlink()
    for file in ("dataset.json", "failures.parquet"):
        (folder / file).unlink()
    ledger = folder / "work" / "ledger" / "fetch-0.jsonl"
    lines = [Attempt(**json.loads(line)) for line in ledger.read_text().splitlines()]
    ledger.unlink()
    write_ledger(folder, *(replace(line, path=line.path and f"/gone/{line.key}.mp4") for line in lines))
    not_fetched = {"key": "absent_0", "stage": "fetch", "code": "local.missing", "message": "no file"}
    record = folder / "work" / "eval-000000.tar.json"
    record.write_text(
        json.dumps({**(content := json.loads(record.read_text())), "failures": [*content["failures"], not_fetched]})
    )
    report = make_report(folder, NOW)
    train = report.splits["train"]
    finished = sum(len(keys) for name, keys in assignment.items() if name.startswith("train")) - len(assignment[unfinished])
    assert train.there == finished
    assert train.packed + sum(reason.clips for reason in train.pack_failures) == finished
    assert {reason.code: reason.clips for reason in train.reasons} == {"fetch.lost": len(assignment[unfinished])}
    assert [(reason.code, reason.clips) for reason in report.splits["eval"].reasons] == [("local.missing", 1)]
    done = {key for name, keys in assignment.items() if name != unfinished for key in keys}
    assert report.raw_bytes == sum(line.size for line in lines if line.key in done)


class _Tags(HTMLParser):
    """The tags of a page, and the URLs that they load."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href")]
        assert not [name for name, _ in attrs if name.startswith("on")]


def test_hostile_texts_stay_texts(tmp_path: Path, mbt: Door) -> None:
    """The dataset's name, a class, a code, an action and a message are hostile; the code is also drawn in a plot."""
    evil = "<script>alert(1)</script><img src=http://a.test/x onerror=alert(2)>\"'&"
    labels = LabelSet((Label(evil, evil), Label("b", "Beta")))
    clips = [Clip(f"k{i}", "v", 0, 1000, "train", (i % 2,)) for i in range(3)]
    write_plan(tmp_path, Plan(dataset=evil, task="multilabel"), labels, clip_table(clips))
    code = "$\\frac{$\x1b[31m\u202e\U0001f600" + evil
    write_ledger(tmp_path, success(tmp_path, "k0"), replace(failure("k1", code, evil), message=evil))
    done = mbt("prep", "report", tmp_path)
    assert done.code == 0, done.err
    assert "\x1b" not in done.out
    text = (tmp_path / "report.html").read_text()
    tags = _Tags()
    tags.feed(text)
    assert "script" not in tags.tags
    assert len(tags.loaded) == 3
    assert all(re.fullmatch(r"data:image/png;base64,[A-Za-z0-9+/=]+", source) for source in tags.loaded)
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 6
    assert json.loads((tmp_path / "report.json").read_text())["splits"]["train"]["reasons"][0]["code"] == code


def test_classes_with_the_lowest_and_highest_survival(tmp_path: Path) -> None:
    """Of forty classes, fifteen from each end are visible, and all of them in a folded table."""
    labels = LabelSet(tuple(Label(f"id{i}", f"Class {i}") for i in range(40)))
    clips = [Clip(f"k{i}_{j}", "v", 0, 1000, "train", (i,)) for i in range(40) for j in range(40)]
    write_plan(tmp_path, Plan(dataset="hand", task="multilabel"), labels, clip_table(clips))
    media = success(tmp_path, "one")
    write_ledger(
        tmp_path,
        *(
            replace(media, key=f"k{i}_{j}") if j < i else failure(f"k{i}_{j}", "perm.private", "permanent", final=True)
            for i in range(40)
            for j in range(40)
        ),
    )
    text = page(make_report(tmp_path, NOW))
    lowest, highest, everything = (
        re.findall(r"<td>Class (\d+)</td>", part) for part in re.split("<h3>Highest|<details>", text)
    )
    assert list(map(int, lowest)) == list(range(15))
    assert list(map(int, highest)) == list(range(39, 24, -1))
    assert list(map(int, everything)) == list(range(40))
    assert re.search(r"<td>Class 10</td>(<td class=\"n\">[^<]+</td>){3}<td class=\"n\">25.0%</td>", text)


def test_a_report_during_a_run(tmp_path: Path) -> None:
    from mbt.manifests.atomic import exclusive_writer

    keys = planned(tmp_path, [(0,), (1,)])
    with exclusive_writer(tmp_path), LedgerWriter(tmp_path, "fetch-0") as writer:
        writer.append([replace(success(tmp_path, keys[0]), time=time.time())])
        report = write_report(tmp_path, tmp_path)
    assert (report.splits["train"].there, report.splits["train"].to_ask) == (1, 1)
    assert Report.model_validate_json((tmp_path / "report.json").read_bytes()) == report


def test_a_folder_without_a_plan_is_one_line(tmp_path: Path, mbt: Door) -> None:
    with pytest.raises(InputError, match="holds no plan"):
        make_report(tmp_path, NOW)
    for folder in (tmp_path, tmp_path / "nothing"):
        done = mbt("prep", "report", folder)
        assert (done.code, done.out) == (2, "")
        assert done.err == f"error: {folder} holds no plan. Run the plan stage first (--stage plan).\n"
    assert not list(tmp_path.iterdir())


def test_an_unwritable_folder_is_one_line(tmp_path: Path, mbt: Door) -> None:
    planned(tmp_path / "set", [()])
    (tmp_path / "file").touch()
    done = mbt("prep", "report", tmp_path / "set", "--out", tmp_path / "file" / "below")
    assert done.code == 2
    assert "a part of the path is a file" in done.err
