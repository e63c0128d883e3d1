"""`mbt doctor`: what training needs: torch, CUDA, DALI, DeepSpeed."""

import io
import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from mbt.manifests.errors import ConfigError
from mbt.manifests.sizes import format_gigabytes

COLOR = (200, 100, 50)
HEIGHT, WIDTH = 32, 48
TOLERANCE = 3 / 127.5
"""Three of 255 levels: how much JPEG may change a uniform color."""
DEVICES = Path("/dev")
UPDATE_DRIVER = "Update the NVIDIA driver to one that supports torch's CUDA, or set CUDA_VISIBLE_DEVICES= to train on the CPU"
REINSTALL_TORCH = "Run pip install --force-reinstall 'torch>=2.11,<2.12' 'torchaudio>=2.11,<2.12'"
REINSTALL_DALI = "Run pip install --force-reinstall nvidia-dali-cuda130"
REINSTALL_DEEPSPEED = "Run pip install --force-reinstall deepspeed"


def torch_versions() -> str:
    """torch and torchaudio have matching versions."""
    import torch
    import torchaudio

    versions = f"{torch.__version__}, torchaudio {torchaudio.__version__}"
    if torch.__version__.split(".")[:2] != torchaudio.__version__.split(".")[:2]:
        raise ConfigError(f"{versions}: the versions do not match", REINSTALL_TORCH)
    return versions


def cuda() -> str:
    """Every GPU multiplies a small matrix correctly; a machine without GPUs passes."""
    import torch

    if not torch.cuda.is_available():
        if any(DEVICES.glob("nvidia[0-9]*")) and "CUDA_VISIBLE_DEVICES" not in os.environ:
            raise ConfigError(f"torch {torch.__version__} cannot use the GPU of this machine", UPDATE_DRIVER)
        return "no GPU: CPU only"
    found = []
    for index in range(torch.cuda.device_count()):
        square = torch.ones(64, 64, device=f"cuda:{index}")
        if (square @ square).sum().item() != 64**3:
            raise ConfigError(f"GPU {index} returns a wrong matrix product", UPDATE_DRIVER)
        properties = torch.cuda.get_device_properties(index)
        found.append(f"{properties.name} ({format_gigabytes(properties.total_memory, digits=0)})")
    return f"{', '.join(found)}, CUDA {torch.version.cuda}"


def dali() -> str:
    """DALI decodes a JPEG to the right color, on the CPU and, if there is one, on the GPU."""
    import torch

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        _decode_one(device)
    return f"{metadata.version('nvidia-dali-cuda130')}, decodes on {' and '.join(devices)}"


def _decode_one(device: str) -> None:
    import numpy as np
    import torch
    from matplotlib.image import imsave

    from mbt.train.data.batch import RawBatch
    from mbt.train.data.decode import decode
    from mbt.train.data.views import eval_plan

    jpeg = io.BytesIO()
    imsave(jpeg, np.broadcast_to(np.array(COLOR, np.uint8), (HEIGHT, WIDTH, 3)), format="jpeg")
    batches = iter([RawBatch(eval_plan(np.zeros(1, np.int64)), [jpeg.getvalue()], None)])
    [(_, images)] = decode(lambda: next(batches, None), 1, None, (HEIGHT, HEIGHT), torch.device(device), threads=1)
    expected = torch.tensor(COLOR).view(1, 3, 1, 1) / 127.5 - 1
    if images.shape != (1, 3, HEIGHT, HEIGHT) or (images.cpu() - expected).abs().max() > TOLERANCE:
        raise ConfigError(f"DALI decodes a JPEG to a wrong color or size on {device}", REINSTALL_DALI)


def deepspeed() -> str:
    """DeepSpeed can be imported."""
    import mbt.train.engine.deepspeed_engine  # noqa: F401

    return metadata.version("deepspeed")


TRAINING_CHECKS: list[tuple[str, Callable[[], str], str]] = [
    ("torch", torch_versions, REINSTALL_TORCH),
    ("cuda", cuda, UPDATE_DRIVER),
    ("dali", dali, REINSTALL_DALI),
    ("deepspeed", deepspeed, REINSTALL_DEEPSPEED),
]
"""Name of the check; the function, which returns what it found or raises; the remedy for errors other than MbtError."""
