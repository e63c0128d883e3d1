"""What the documents say holds: their Python runs, and every code that a failure can have is explained."""

import re
from pathlib import Path

import pytest

from mbt.train.recipes.schema import Recipe

ROOT = Path(__file__).parents[3]


def blocks(document: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_reading_without_mbt_works_as_specified(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shards)
    (code,) = blocks("docs/shards.md")
    seen: dict[str, object] = {}
    exec(code, seen)
    assert bytes(seen["first_jpeg"])[:2] == b"\xff\xd8"  # type: ignore[arg-type]
    assert bytes(seen["first_jpeg"])[-2:] == b"\xff\xd9"  # type: ignore[arg-type]
    assert seen["log_mel"].shape == (240, 128)  # type: ignore[attr-defined]


def test_the_readmes_python_runs(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "audioset").symlink_to(shards)
    monkeypatch.chdir(tmp_path)
    reading, model = blocks("README.md")
    seen: dict[str, object] = {}
    exec(reading, seen)
    assert [jpeg[:2] for jpeg in seen["jpegs"]] == [b"\xff\xd8"] * 3  # type: ignore[attr-defined]
    assert seen["log_mel"].shape == (200, 128)  # type: ignore[attr-defined]
    exec(model, seen)
    assert seen["logits"].shape == (1, 527)  # type: ignore[attr-defined]


def test_every_code_of_a_failure_is_in_the_specification() -> None:
    specification = (ROOT / "docs/shards.md").read_text()
    source = "\n".join(path.read_text() for path in (ROOT / "prep").rglob("*.py"))
    codes = set(re.findall(r'"((?:clip|decode|fetch|local)\.[a-z_]+)"', source)) | {"clip.no_video", "clip.no_audio"}
    assert len(codes) > 10
    assert {code for code in codes if f"`{code}`" not in specification} == set()


def test_the_weights_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("docs/weights.md")
    seen: dict[str, object] = {}
    exec(code, seen)
    assert seen["logits"].shape == (1, 10)  # type: ignore[attr-defined]


@pytest.mark.parametrize("document", ["README.md", "docs/reproduce.md", "docs/weights.md"])
def test_recipes_have_the_fields_that_the_documents_name(document: str) -> None:
    text = (ROOT / document).read_text()
    named = set(re.findall(r"\b((?:model|init|input|train|eval)\.[a-z_]+)(?=[=`\s,.;]|$)", text))
    known = {f"{section}.{field}" for section, values in Recipe() for field in type(values).model_fields}
    files = {"model.safetensors", "eval.json", "train.parquet"}
    assert named - files - {"model.size"} <= known
    assert len(named) >= 2
