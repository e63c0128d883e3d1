"""The documents are correct: their Python runs, all failure codes are explained, and the fields they name exist."""

import re
from pathlib import Path

import pytest

from mbt.train.recipes.schema import Recipe

ROOT = Path(__file__).parents[3]


def python_blocks(document: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_reading_without_mbt_works_as_specified(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shards)
    (code,) = python_blocks("docs/shards.md")
    names: dict[str, object] = {}
    exec(code, names)
    assert bytes(names["first_jpeg"])[:2] == b"\xff\xd8"  # type: ignore[arg-type]
    assert bytes(names["first_jpeg"])[-2:] == b"\xff\xd9"  # type: ignore[arg-type]
    assert names["log_mel"].shape == (240, 128)  # type: ignore[attr-defined]


@pytest.mark.slow
def test_the_readmes_python_runs(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "audioset").symlink_to(shards)
    monkeypatch.chdir(tmp_path)
    model, reading = python_blocks("README.md")
    names: dict[str, object] = {}
    exec(reading, names)
    assert [jpeg[:2] for jpeg in names["jpegs"]] == [b"\xff\xd8"] * 3  # type: ignore[attr-defined]
    assert names["log_mel"].shape == (200, 128)  # type: ignore[attr-defined]
    exec(model, names)
    assert names["logits"].shape == (1, 527)  # type: ignore[attr-defined]


def test_every_failure_code_is_in_the_specification() -> None:
    specification = (ROOT / "docs/shards.md").read_text()
    source = "\n".join(path.read_text() for path in (ROOT / "prep").rglob("*.py"))
    codes = set(re.findall(r'"((?:clip|decode|fetch|local)\.[a-z_]+)"', source)) | {"clip.no_video", "clip.no_audio"}
    assert len(codes) > 10
    assert {code for code in codes if f"`{code}`" not in specification} == set()


def test_the_python_of_docs_weights_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = python_blocks("docs/weights.md")
    names: dict[str, object] = {}
    exec(code, names)
    assert names["logits"].shape == (1, 10)  # type: ignore[attr-defined]


@pytest.mark.parametrize("document", ["reproduce", "scale", "training", "weights", "your-clips"])
def test_fields_named_in_the_documents_exist_in_recipes(document: str) -> None:
    text = (ROOT / "docs" / f"{document}.md").read_text()
    named = set(re.findall(r"\b((?:model|init|input|train|eval)\.[a-z_]+)(?=[=`\s,.;]|$)", text))
    known = {f"{section}.{field}" for section, values in Recipe() for field in type(values).model_fields}
    files = {"model.safetensors", "eval.json", "train.parquet"}
    assert named - files - {"model.size"} <= known
    assert len(named) >= 2
