"""Real clips with their AudioSet labels: pack, train for a few steps, evaluate, predict."""

import json
import lzma
from pathlib import Path

import pytest

from mbt.manifests.reading.reader import ShardReader
from tests.conftest import Door

TRAIN, EVAL = ("00W1lcxW-WU", "0f0Rq7e5yX8"), ("3qesirWAGt4", "6VBURvUgzls", "M1pPtg6a_g8", "MnEZwnRuQR8")
SMALL = (
    *("model.hidden_size=32", "model.num_heads=2", "model.num_layers=2", "model.mlp_dim=64", "model.fusion_layer=1"),
    *("init.weights=none", "train.batch_size=2", "train.max_steps=3", "train.log_every=1", "eval.batch_size=4"),
)


def official_rows(lists: Path, ids: tuple[str, ...]) -> str:
    """The rows of these clips in the official lists, unchanged."""
    rows = []
    for path in (lists / "audioset").glob("*_segments.csv*"):
        with lzma.open(path, "rt") if path.suffix == ".xz" else path.open() as file:
            rows += [line for line in file if line.startswith(ids)]
    assert len(rows) == len(ids)
    return "# a\n# b\n# c\n" + "".join(rows)


@pytest.mark.clips
@pytest.mark.slow
def test_real_clips_from_packing_to_prediction(real_clips: Path, official_lists: Path, tmp_path: Path, mbt: Door) -> None:
    shards, run = tmp_path / "audioset", tmp_path / "run"
    for subset, ids in (("balanced", TRAIN), ("eval", EVAL)):
        rows = tmp_path / f"{subset}.csv"
        rows.write_text(official_rows(official_lists, ids))
        packed = mbt("prep", "audioset", "--subset", subset, "--list", rows, "--source", real_clips, "--out", shards)
        assert packed.code == 0, packed.err

    with ShardReader(shards, "eval") as reader:
        samples = {s["video_id"]: s for s in (reader[row].description() for row in range(len(reader)))}
        names = reader.labels.names()
    assert set(samples) == set(EVAL)
    assert all((s["num_frames"], s["num_mel_rows"]) == (250, 1000) for s in samples.values())
    assert [names[i] for i in samples["6VBURvUgzls"]["labels"]] == ["Printer"]

    settings = [part for setting in SMALL for part in ("--set", setting)]
    trained = mbt("train", "--data", shards, "--out", run, *settings)
    assert trained.code == 0, trained.err
    losses = [line["loss"] for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in line]
    assert len(losses) == 3
    assert losses[0] == pytest.approx(527 * 0.693147, rel=1e-4), "all logits start at zero"
    assert losses[2] < losses[0]

    scored = mbt("eval", "--checkpoint", run, "--data", shards, "--crops", 4, "--json")
    report = json.loads(scored.out)
    assert (report["samples"], report["crops"], len(report["classes"])) == (4, 4, 527)
    assert 0 < report["mAP"] <= 1

    file = real_clips / "vggsound" / "NMQiKrTkl10_000039.mp4"
    predicted = mbt("predict", file, "--checkpoint", run, "--top", 3)
    assert predicted.code == 0, predicted.err
    assert len(predicted.out.strip().splitlines()) == 4
