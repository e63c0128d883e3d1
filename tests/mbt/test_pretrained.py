"""Saving models to folders, and loading them from folders and the hub."""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from mbt import MBT
from tests.tiny import CONFIG


def inputs(frames: int = 2, side: int = 32, rows: int = 64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    rgb = torch.rand(2, frames, 3, side, side, generator=generator) * 2 - 1
    return {"rgb": rgb, "spec": torch.randn(2, rows, 32, generator=generator)}


@pytest.fixture
def model() -> MBT:
    torch.manual_seed(0)
    model = MBT(CONFIG).eval()
    torch.nn.init.normal_(model.head.weight)
    return model


@pytest.fixture
def folder(model: MBT, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_model_loads_unchanged(model: MBT, folder: Path) -> None:
    loaded = MBT.from_pretrained(folder)
    assert loaded.config == model.config
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    with torch.no_grad():
        assert torch.equal(loaded(**inputs()), model(**inputs()))
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json", "README.md"}


def test_the_hub_can_read_the_model_card(folder: Path) -> None:
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "mbt"
    assert "arxiv:2107.00135" in card.data.tags
    assert "4 bottleneck tokens in layers 1 to 1" in card.text
    assert "(B, 64, 32)" in card.text


def test_half_precision_files_are_read_as_float32(folder: Path) -> None:
    state = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(state, folder / "model.safetensors")
    assert {parameter.dtype for parameter in MBT.from_pretrained(folder).parameters()} == {torch.float32}


def test_other_input_sizes_resize_the_position_embeddings(model: MBT, folder: Path) -> None:
    """Twice as many frames of four times as many pixels, and half the audio: the corners of each grid keep their values."""
    larger = MBT.from_pretrained(folder, num_frames=4, image_size=64, spec_shape=(32, 32))
    old = model.tokens["rgb"].position[0, 1:].reshape(2, 2, 2, 16)
    new = larger.tokens["rgb"].position[0, 1:].reshape(4, 4, 4, 16)
    torch.testing.assert_close(new[::3, ::3, ::3], old)
    torch.testing.assert_close(larger.tokens["rgb"].position[:, :1], model.tokens["rgb"].position[:, :1])
    spec = larger.tokens["spec"].position[0, 1:].reshape(2, 2, 16)
    torch.testing.assert_close(spec, model.tokens["spec"].position[0, 1:].reshape(4, 2, 16)[[0, 3]])
    assert larger(**inputs(4, 64, 32)).shape == (2, 5)


def test_a_model_of_square_frames_takes_wide_frames(model: MBT, folder: Path, tmp_path: Path) -> None:
    """From 2 x 2 patches to 2 x 4: rows are unchanged, and the new columns interpolate at one and two thirds."""
    MBT.from_pretrained(folder, image_size=(32, 64)).save_pretrained(tmp_path / "wide")
    wide = MBT.from_pretrained(tmp_path / "wide")
    assert wide.config == replace(CONFIG, image_size=(32, 64))
    left, right = model.tokens["rgb"].position[0, 1:].reshape(2, 2, 2, 16).unbind(2)
    expected = torch.stack([left, (2 * left + right) / 3, (left + 2 * right) / 3, right], dim=2)
    torch.testing.assert_close(wide.tokens["rgb"].position[0, 1:].reshape(2, 2, 4, 16), expected)
    assert "(B, 2, 3, 32, 64)" in (tmp_path / "wide" / "README.md").read_text()
    assert wide(rgb=torch.zeros(1, 2, 3, 32, 64), spec=torch.zeros(1, 64, 32)).shape == (1, 5)


@pytest.mark.parametrize(
    ("seconds", "tokens"), [(2, 12 * 8), (4, 25 * 8), (6, 37 * 8), (8, 50 * 8), (3.52, 22 * 8), (10, 62 * 8)]
)
def test_a_model_of_eight_seconds_takes_any_window(seconds: float, tokens: int, tmp_path: Path) -> None:
    """100 rows per second and 128 mel bands, in patches of 16 x 16."""
    eight = MBT(replace(CONFIG, spec_shape=(800, 128)))
    eight.save_pretrained(tmp_path / "eight")
    rows = round(100 * seconds)
    model = MBT.from_pretrained(tmp_path / "eight", spec_shape=(rows, 128))
    assert model.tokens["spec"].position.shape == (1, tokens + 1, 16)
    ends = [tokens_of.position[0, [1, -1]] for tokens_of in (model.tokens["spec"], eight.tokens["spec"])]
    torch.testing.assert_close(*ends)
    assert model(rgb=inputs()["rgb"], spec=torch.randn(2, rows, 128)).shape == (2, 5)


def test_a_head_for_other_classes_starts_at_zero(folder: Path) -> None:
    other = MBT.from_pretrained(folder, num_classes=9)
    assert other(**inputs()).shape == (2, 9)
    assert not other.head.weight.any()


def test_fields_that_do_not_affect_tensors_can_be_changed(folder: Path) -> None:
    assert MBT.from_pretrained(folder, drop_path=0.3, test_with_bottlenecks=False).config.drop_path == 0.3


def damaged(folder: Path, damage: str) -> None:
    state = load_file(folder / "model.safetensors")
    name = "encoder.blocks.spec.1.mlp.fc1.weight"
    match damage:
        case "missing":
            del state[name]
        case "shape":
            state[name] = state[name][:-1].clone()
        case "unknown":
            state["encoder.blocks.spec.2.mlp.fc1.weight"] = torch.zeros(3)
        case "integer":
            state[name] = state[name].long()
        case "large":
            state[name] = state[name].double() + 1e39
        case "nan":
            state[name][0, 0] = float("nan")
    save_file(state, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", r"tensor encoder.blocks.spec.1.mlp.fc1.weight \(32, 16\) is missing"),
        ("shape", r"tensor encoder.blocks.spec.1.mlp.fc1.weight has shape \(31, 16\), but the model has \(32, 16\)"),
        ("unknown", r"unknown tensor encoder.blocks.spec.2.mlp.fc1.weight \(3,\)"),
        ("integer", "tensor encoder.blocks.spec.1.mlp.fc1.weight has dtype torch.int64"),
        ("large", "tensor encoder.blocks.spec.1.mlp.fc1.weight has NaN or infinite values"),
        ("nan", "tensor encoder.blocks.spec.1.mlp.fc1.weight has NaN or infinite values"),
    ],
)
def test_a_wrong_tensor_is_named(folder: Path, damage: str, message: str) -> None:
    damaged(folder, damage)
    with pytest.raises(ValueError, match=message):
        MBT.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", None, "model.safetensors is damaged or missing"),
        ("model.safetensors", b"\x00" * 30, "model.safetensors is damaged or missing"),
        ("config.json", None, "config.json cannot be read: No such file"),
        ("config.json", b"{", "config.json is not a valid model configuration"),
        ("config.json", b"[]", "config.json is not a valid model configuration"),
        ("config.json", b'{"num_classes": "5"}', "config.json is not a valid model configuration"),
        ("config.json", b'{"num_classes": 5, "color": 1}', "color"),
    ],
)
def test_damaged_files_are_named(folder: Path, name: str, content: bytes | None, message: str) -> None:
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        MBT.from_pretrained(folder)


def test_fields_that_the_weights_do_not_fit(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"tensor encoder\.bottleneck has shape \(1, 4, 16\), but the model has \(1, 8, 16\)"):
        MBT.from_pretrained(folder, num_bottlenecks=8)
    with pytest.raises(ValueError, match=r"fusion_layer 3 is outside 0\.\.2"):
        MBT.from_pretrained(folder, fusion_layer=3)


def test_neither_a_folder_nor_an_id(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither a folder nor a model id on the hub"):
        MBT.from_pretrained(tmp_path / "nothing" / "here")


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(folder: Path) -> Iterator[str]:
    """A server that answers like the hub and has a single model, `someone/mbt-small`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2]
            if not self.path.startswith("/someone/mbt-small/resolve/") or not (folder / name).exists():
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            content = (folder / name).read_bytes()
            self.send_response(200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hash(content)}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


LOAD = "import sys; from mbt import MBT; print(MBT.from_pretrained(sys.argv[1]).config.to_json())"


def load_in_new_process(source: str, hub: str, cache: Path) -> subprocess.CompletedProcess[str]:
    """Load a model in a new process, since the hub's library reads the hub's address only when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run([sys.executable, "-c", LOAD, source], env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_a_model_is_loaded_from_the_hub(hub: str, tmp_path: Path) -> None:
    done = load_in_new_process("someone/mbt-small", hub, tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(CONFIG.to_json())


@pytest.mark.slow
def test_a_model_missing_from_the_hub_is_named(hub: str, tmp_path: Path) -> None:
    done = load_in_new_process("someone/else", hub, tmp_path / "cache")
    assert "OSError: cannot download someone/else from the hub" in done.stderr
