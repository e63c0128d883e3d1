"""The part of `mbt doctor` that is about training: torch, CUDA, DALI, DeepSpeed."""

import io
import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from mbt.manifests.errors import ConfigError
from mbt.manifests.sizes import format_gigabytes

COLOUR = (200, 100, 50)
HEIGHT, WIDTH = 32, 48
TOLERANCE = 3 / 127.5
"""Three of 255 levels: what JPEG may do to one colour."""
DEVICES = Path("/dev")
UPDATE_DRIVER = "Update NVIDIA's driver to one for torch's CUDA, or set CUDA_VISIBLE_DEVICES= to train on the CPU"
REINSTALL_TORCH = "Run pip install --force-reinstall 'torch>=2.11,<2.12' 'torchaudio>=2.11,<2.12'"
REINSTALL_DALI = "Run pip install --force-reinstall nvidia-dali-cuda130"
REINSTALL_DEEPSPEED = "Run pip install --force-reinstall deepspeed"


def torch_versions() -> str:
    """torch, and a torchaudio that belongs to it."""
    import torch
    import torchaudio

    versions = f"{torch.__version__}, torchaudio {torchaudio.__version__}"
    if torch.__version__.split(".")[:2] != torchaudio.__version__.split(".")[:2]:
        raise ConfigError(f"{versions} do not belong together", REINSTALL_TORCH)
    return versions


def cuda() -> str:
    """The GPUs, each after a small multiplication; a machine without any is fine."""
    import torch

    if not torch.cuda.is_available():
        if any(DEVICES.glob("nvidia[0-9]*")) and "CUDA_VISIBLE_DEVICES" not in os.environ:
            raise ConfigError(f"there is a GPU, and torch {torch.__version__} cannot use it", UPDATE_DRIVER)
        return "no GPU: CPU only"
    found = []
    for index in range(torch.cuda.device_count()):
        square = torch.ones(64, 64, device=f"cuda:{index}")
        if (square @ square).sum().item() != 64**3:
            raise ConfigError(f"GPU {index} multiplies wrongly", UPDATE_DRIVER)
        properties = torch.cuda.get_device_properties(index)
        found.append(f"{properties.name} ({format_gigabytes(properties.total_memory, digits=0)})")
    return f"{', '.join(found)}, CUDA {torch.version.cuda}"


def dali() -> str:
    """DALI decodes a JPEG made here, on the CPU and on the GPU if there is one, to the right colour."""
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
    imsave(jpeg, np.broadcast_to(np.array(COLOUR, np.uint8), (HEIGHT, WIDTH, 3)), format="jpeg")
    batches = iter([RawBatch(eval_plan(np.zeros(1, np.int64)), [jpeg.getvalue()], None)])
    [(_, images)] = decode(lambda: next(batches, None), 1, None, (HEIGHT, HEIGHT), torch.device(device), threads=1)
    wanted = torch.tensor(COLOUR).view(1, 3, 1, 1) / 127.5 - 1
    if images.shape != (1, 3, HEIGHT, HEIGHT) or (images.cpu() - wanted).abs().max() > TOLERANCE:
        raise ConfigError(f"DALI decodes a JPEG wrongly on {device}", REINSTALL_DALI)


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
"""Name of a check, what looks (it returns what it found, or raises), and the remedy for errors that bring none of their own."""
