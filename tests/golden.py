"""Golden files: parameters, inputs and outputs of small models of the official implementation; see tests/goldens/README.md."""

import io
import json
import lzma
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mbt import MBT, MBTConfig
from mbt.weights.scenic import from_scenic, interior_frames

FOLDER = Path(__file__).parent / "goldens"
NAMES = {"rgb": "rgb", "spec": "spectrogram"}


class Golden:
    """One golden file and its entry in the index."""

    def __init__(self, name: str) -> None:
        with np.load(io.BytesIO(golden_bytes(f"{name}.npz"))) as file:
            self.arrays: dict[str, np.ndarray] = {key: file[key] for key in file.files}
        self.name = name
        self.about = index()[name]

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        """Arrays whose names start with `prefix/`, keyed by the rest of the name."""
        return {key[len(prefix) + 1 :]: array for key, array in self.arrays.items() if key.startswith(f"{prefix}/")}

    @cached_property
    def config(self) -> MBTConfig:
        """The model's configuration, from the index only; nothing is inferred from shapes."""
        official = self.about["model"]
        modalities = tuple(m for m, name in NAMES.items() if name in official["modality_fusion"])
        height, width, *frames = official["patches_size"]
        tubelet = (frames[0] if official["temporal_encoding"]["method"] == "3d_conv" else 1, height, width)
        inputs = self.about["inputs"]
        fields: dict[str, Any] = {}
        if "rgb" in inputs:
            frame_count = inputs["rgb"][1]
            if official["temporal_encoding"]["method"] == "temporal_sampling":
                frame_count = official["temporal_encoding"]["n_sampled_frames"]
            fields |= {"num_frames": frame_count, "image_size": inputs["rgb"][2], "tubelet": tubelet}
        if "spectrogram" in inputs:
            fields |= {"spec_shape": tuple(inputs["spectrogram"][1:3]), "spec_patch": (height, width)}
        if official["use_bottleneck"]:
            fields["num_bottlenecks"] = official["n_bottlenecks"] + (official["classifier"] == "token")
        return MBTConfig(
            num_classes=self.about["num_classes"],
            modalities=modalities,  # type: ignore[arg-type]
            fusion="bottleneck" if official["use_bottleneck"] or len(modalities) == 1 else "attention",
            share_encoder=official["share_encoder"],
            fusion_layer=official["fusion_layer"],
            bottleneck_update="sequential" if self.name.startswith("x01") else "mean",
            test_with_bottlenecks=official["test_with_bottlenecks"],
            hidden_size=official["hidden_size"],
            num_layers=official["num_layers"],
            num_heads=official["num_heads"],
            mlp_dim=official["mlp_dim"],
            classifier=official["classifier"],
            representation_size=official["representation_size"],
            drop_path=official["stochastic_droplayer_rate"],
            **fields,
        )

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Flax parameters (or their gradients) under `prefix`, keyed by the names in our model."""
        return from_scenic(self.under(prefix), self.config)[1]

    def model(self, prefix: str = "params") -> MBT:
        """The model with the golden parameters."""
        model = MBT(self.config).eval()
        model.load_state_dict(self.tensors(prefix))
        return model

    def inputs(self, prefix: str = "inputs") -> dict[str, Tensor]:
        """The inputs in our model's layout."""
        given = {m: self.arrays[f"{prefix}/{name}"] for m, name in NAMES.items() if f"{prefix}/{name}" in self.arrays}
        inputs = {}
        if "rgb" in given:
            frames = interior_frames(given["rgb"].shape[1], self.config.num_frames)
            inputs["rgb"] = torch.from_numpy(given["rgb"][:, frames].transpose(0, 1, 4, 2, 3).copy())
        if "spec" in given:
            inputs["spec"] = torch.from_numpy(given["spec"][..., 0].copy())
        return inputs

    def targets(self, prefix: str = "labels") -> dict[str, Tensor]:
        """The labels, keyed by our names for the modalities."""
        names = {"rgb": "rgb", "spectrogram": "spec", "all": "all"}
        return {names[name]: torch.from_numpy(labels) for name, labels in self.under(prefix).items() if name in names}


@cache
def index() -> dict[str, dict[str, Any]]:
    """The entries of index.json, by the name of the golden file."""
    return json.loads((FOLDER / "index.json").read_text())["goldens"]


def golden_bytes(name: str) -> bytes:
    """The uncompressed content of a golden file."""
    return lzma.decompress((FOLDER / f"{name}.xz").read_bytes())


def golden_file(name: str, folder: Path) -> Path:
    """Write an uncompressed golden file to `folder`, for code that reads from a path."""
    path = folder / name
    path.write_bytes(golden_bytes(name))
    return path


def close(actual: Tensor, expected: np.ndarray, tolerance: float = 2e-5) -> None:
    """Assert that they differ by at most tolerance * max(1, max |expected|)."""
    bound = tolerance * max(1.0, float(np.abs(expected).max()))
    difference = float(np.abs(actual.detach().numpy() - expected).max())
    assert difference <= bound, f"{difference:.3g} > {bound:.3g}"


def gradients_close(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Assert rtol 1e-3 and atol 2e-5 * max |gradient|, except for key biases: their gradient is zero up to rounding."""
    assert actual.keys() == expected.keys()
    largest = max(float(tensor.abs().max()) for tensor in expected.values())
    for name, tensor in expected.items():
        if not name.endswith("key.bias"):
            torch.testing.assert_close(actual[name], tensor, rtol=1e-3, atol=2e-5 * largest, msg=lambda m, n=name: f"{n}: {m}")
