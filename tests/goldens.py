"""Outputs of the official implementation, where they are present: parameters, inputs and outputs of small models."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mbt import MBT, MBTConfig
from mbt.weights.scenic import from_scenic, interior_frames

FOLDER = Path(__file__).parents[2] / "shared" / "goldens"
NAMES = {"rgb": "rgb", "spec": "spectrogram"}


class Golden:
    """One golden file and its entry in the index; the test is skipped where there is none."""

    def __init__(self, name: str) -> None:
        if not FOLDER.is_dir():
            pytest.skip("the golden files of the official implementation are not here")
        with np.load(FOLDER / f"{name}.npz") as file:
            self.arrays: dict[str, np.ndarray] = {key: file[key] for key in file.files}
        self.name = name
        self.about = about(name)

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        """Arrays whose name begins with `prefix/`, by the rest of it."""
        return {key[len(prefix) + 1 :]: array for key, array in self.arrays.items() if key.startswith(f"{prefix}/")}

    @cached_property
    def config(self) -> MBTConfig:
        """The configuration, from the index alone: nothing is inferred from shapes."""
        theirs = self.about["model"]
        modalities = tuple(m for m, name in NAMES.items() if name in theirs["modality_fusion"])
        height, width, *frames = theirs["patches_size"]
        tubelet = (frames[0] if theirs["temporal_encoding"]["method"] == "3d_conv" else 1, height, width)
        inputs = self.about["inputs"]
        fields: dict[str, Any] = {}
        if "rgb" in inputs:
            shown = inputs["rgb"][1]
            if theirs["temporal_encoding"]["method"] == "temporal_sampling":
                shown = theirs["temporal_encoding"]["n_sampled_frames"]
            fields |= {"num_frames": shown, "image_size": inputs["rgb"][2], "tubelet": tubelet}
        if "spectrogram" in inputs:
            fields |= {"spec_shape": tuple(inputs["spectrogram"][1:3]), "spec_patch": (height, width)}
        if theirs["use_bottleneck"]:
            fields["num_bottlenecks"] = theirs["n_bottlenecks"] + (theirs["classifier"] == "token")
        return MBTConfig(
            num_classes=self.about["num_classes"],
            modalities=modalities,  # type: ignore[arg-type]
            fusion="bottleneck" if theirs["use_bottleneck"] or len(modalities) == 1 else "attention",
            share_encoder=theirs["share_encoder"],
            fusion_layer=theirs["fusion_layer"],
            bottleneck_update="sequential" if self.name.startswith("x01") else "mean",
            test_with_bottlenecks=theirs["test_with_bottlenecks"],
            hidden_size=theirs["hidden_size"],
            num_layers=theirs["num_layers"],
            num_heads=theirs["num_heads"],
            mlp_dim=theirs["mlp_dim"],
            classifier=theirs["classifier"],
            representation_size=theirs["representation_size"],
            drop_path=theirs["stochastic_droplayer_rate"],
            **fields,
        )

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Flax parameters (or gradients of them) below `prefix`, by our names."""
        return from_scenic(self.under(prefix), self.config)[1]

    def model(self, prefix: str = "params") -> MBT:
        """The model with its parameters."""
        model = MBT(self.config).eval()
        model.load_state_dict(self.tensors(prefix))
        return model

    def inputs(self, prefix: str = "inputs") -> dict[str, Tensor]:
        """Inputs of the model, as ours takes them."""
        given = {m: self.arrays[f"{prefix}/{name}"] for m, name in NAMES.items() if f"{prefix}/{name}" in self.arrays}
        inputs = {}
        if "rgb" in given:
            frames = interior_frames(given["rgb"].shape[1], self.config.num_frames)
            inputs["rgb"] = torch.from_numpy(given["rgb"][:, frames].transpose(0, 1, 4, 2, 3).copy())
        if "spec" in given:
            inputs["spec"] = torch.from_numpy(given["spec"][..., 0].copy())
        return inputs

    def targets(self, prefix: str = "labels") -> dict[str, Tensor]:
        """Labels by our names of the modalities."""
        names = {"rgb": "rgb", "spectrogram": "spec", "all": "all"}
        return {names[name]: torch.from_numpy(labels) for name, labels in self.under(prefix).items() if name in names}


def about(name: str) -> dict[str, Any]:
    """Entry of the index."""
    entries = {entry["name"]: entry for entry in json.loads((FOLDER / "index.json").read_text())["goldens"]}
    if name in entries:
        return entries[name]
    extra = json.loads((FOLDER / "index_extras.json").read_text())[name]
    return {**extra, **extra.get("spec", {})}


def close(actual: Tensor, expected: np.ndarray, tolerance: float = 2e-5) -> None:
    """Within tolerance * max(1, largest |expected|)."""
    bound = tolerance * max(1.0, float(np.abs(expected).max()))
    difference = float(np.abs(actual.detach().numpy() - expected).max())
    assert difference <= bound, f"{difference:.3g} > {bound:.3g}"


def gradients_close(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Within 1e-3 relative, and 2e-5 of the largest; key biases, whose gradient is zero but for rounding, are left out."""
    assert actual.keys() == expected.keys()
    largest = max(float(tensor.abs().max()) for tensor in expected.values())
    for name, tensor in expected.items():
        if not name.endswith("key.bias"):
            torch.testing.assert_close(actual[name], tensor, rtol=1e-3, atol=2e-5 * largest, msg=lambda m, n=name: f"{n}: {m}")
