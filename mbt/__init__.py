"""The Multimodal Bottleneck Transformer, and the shards that it is trained on.

The public names are imported when they are first used, so that `import mbt` is fast and the model alone needs neither
DALI nor DeepSpeed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mbt.config import MBTConfig
    from mbt.manifests.reading.reader import ShardReader
    from mbt.model import MBT

__all__ = ["MBT", "MBTConfig", "ShardReader"]

_MODULES = {"MBT": "mbt.model", "MBTConfig": "mbt.config", "ShardReader": "mbt.manifests.reading.reader"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
