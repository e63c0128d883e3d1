"""The training checks of `mbt doctor` find every deliberate fault."""

import sys
from pathlib import Path

import pytest
import torch
import torchaudio

from mbt.prep.doctor import Finding, examine
from mbt.train import doctor
from tests.conftest import Door


def find(check: str) -> Finding:
    """The result of one of the training checks."""
    [finding] = examine(each for each in doctor.TRAINING_CHECKS if each[0] == check)
    return finding


def test_dali_that_cannot_be_imported(tmp_path: Path, mbt: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    monkeypatch.delitem(sys.modules, "mbt.train.data.decode", raising=False)
    outcome = mbt("doctor", "--out", tmp_path)
    [line] = [line for line in outcome.out.splitlines() if line[6:10] == "dali"]
    assert outcome.code == 1
    assert line.startswith("fail")
    assert "nvidia.dali" in line
    assert "pip install --force-reinstall nvidia-dali-cuda130" in line


def test_dali_that_swaps_colors(monkeypatch: pytest.MonkeyPatch) -> None:
    from mbt.train.data import decode

    original = decode.decode
    monkeypatch.setattr(decode, "decode", lambda *args, **more: ((raw, rgb.flip(1)) for raw, rgb in original(*args, **more)))
    finding = find("dali")
    assert (finding.state, "wrong color" in finding.found) == ("fail", True)


def test_deepspeed_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    monkeypatch.delitem(sys.modules, "mbt.train.engine.deepspeed_engine", raising=False)
    finding = find("deepspeed")
    assert (finding.state, "deepspeed" in finding.remedy) == ("fail", True)


def test_torchaudio_of_another_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchaudio, "__version__", "2.9.1")
    finding = find("torch")
    assert (finding.state, torch.__version__ in finding.found, "2.9.1" in finding.found) == ("fail", True, True)


@pytest.mark.parametrize(("node", "hidden", "state"), [(True, False, "fail"), (True, True, "ok"), (False, False, "ok")])
def test_gpu_that_torch_cannot_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: bool, hidden: bool, state: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "DEVICES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "nvidiactl").touch()
    if node:
        (tmp_path / "nvidia0").touch()
    if hidden:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    finding = find("cuda")
    assert (finding.state, finding.found == "no GPU: CPU only") == (state, state == "ok")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_is_reported_and_decodes() -> None:
    assert torch.cuda.get_device_name(0) in find("cuda").found
    assert find("dali").found.endswith("decodes on cpu and cuda")
