"""`mbt flops`: the cost of a configuration, as a table or as JSON."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from mbt.config import MBTConfig
from mbt.flops import clip_flops, fusion_layer_sweep, num_tokens
from mbt.manifests.errors import as_config_error
from mbt.pretrained import read_config
from mbt.train.evaluation.figures import sweep_figure, write_png
from mbt.train.recipes.model_fields import config_fields

AUDIOSET_CLASSES = 527


def model_config(model: str, settings: Sequence[str] = ()) -> MBTConfig:
    """A model's configuration, with `FIELD=VALUE` settings applied.

    Args:
        model: name of a ViT, such as B/16 (with the paper's input and 527 classes), or path of a config.json.
        settings: for fields of `MBTConfig`; values are TOML, as in recipes.

    Raises:
        ConfigError: the model, file or field does not exist, or a value has the wrong type or contradicts another.
    """
    fields = config_fields(settings)
    with as_config_error("Give --model a ViT such as B/16, or a config.json, and change fields with --set FIELD=VALUE"):
        if Path(model).suffix == ".json":
            return dataclasses.replace(read_config(Path(model)), **fields)
        return MBTConfig.vit(model, **{"num_classes": AUDIOSET_CLASSES, **fields})


def cost(model: str, settings: Sequence[str], as_json: bool) -> str:
    """FLOPs of the forward pass of one clip, by part, as a table in GFLOP or as JSON in FLOP.

    Raises:
        ConfigError: see `model_config`.
    """
    config = model_config(model, settings)
    flops = clip_flops(config)
    parts = {**dataclasses.asdict(flops), "total": flops.total}
    if as_json:
        return json.dumps({"config": dataclasses.asdict(config), "flops": parts}, indent=2)
    return "\n".join(["GFLOP of one clip's forward pass", *(f"{number / 1e9:10.2f}  {part}" for part, number in parts.items())])


def sweep_fusion_layer(model: str, settings: Sequence[str], out: Path, as_json: bool) -> str:
    """Total FLOPs of each kind of fusion for every fusion layer, as a table or JSON, and as a plot (paper, Figure 3, right).

    Raises:
        ConfigError: see `model_config`; or the model has a single modality.
        StorageError: the plot cannot be written.
    """
    config = model_config(model, settings)
    with as_config_error("Use a model with both modalities"):
        rows = fusion_layer_sweep(config)
    tokens = " and ".join(f"{number:,} {modality}" for modality, number in num_tokens(config).items())
    about = f"{tokens} tokens, B = {config.num_bottlenecks}, {config.num_layers} layers of width {config.hidden_size}"
    write_png(out, sweep_figure(rows, about))
    if as_json:
        totals = [{"fusion_layer": row.fusion_layer, **{way: flops.total for way, flops in row.ways().items()}} for row in rows]
        return json.dumps({"config": dataclasses.asdict(config), "flops": totals}, indent=2)
    lines = [f"GFLOP of one clip's forward pass: {about}", "", f"{'L_f':>3}" + "".join(f"{way:>20}" for way in rows[0].ways())]
    for row in rows:
        lines.append(f"{row.fusion_layer:3}" + "".join(f"{flops.total / 1e9:20.2f}" for flops in row.ways().values()))
    return "\n".join([*lines, "", f"written to {out}"])
