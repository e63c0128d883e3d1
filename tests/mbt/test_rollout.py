"""Attention rollout, compared with full attention matrices from a forward pass written out in NumPy."""

import numpy as np
import pytest
import torch

from mbt import MBT, MBTConfig
from mbt.encoder import Block
from mbt.rollout import attention_rollout
from tests.tiny import VARIANTS

SMALL = {
    "num_classes": 3,
    "hidden_size": 12,
    "num_layers": 3,
    "num_heads": 3,
    "mlp_dim": 20,
    "num_frames": 4,
    "image_size": 12,
    "tubelet": (1, 6, 4),
    "spec_shape": (17, 8),
    "spec_patch": (4, 4),
    "fusion_layer": 1,
    "num_bottlenecks": 2,
}
GRIDS = {"rgb": (4, 2, 3), "spec": (4, 2)}


def small(**fields: object) -> MBT:
    """A small model that attends to some tokens far more than to others."""
    torch.manual_seed(0)
    model = MBT(MBTConfig(**{**SMALL, **fields})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("query.weight", "key.weight")):
                parameter.mul_(3)
            elif parameter.ndim == 1 or name.endswith("cls"):
                parameter.add_(torch.randn_like(parameter) / 3)
            elif name.endswith(("position", "bottleneck", "head.weight")):
                parameter.normal_()
    return model


def inputs(model: MBT, batch: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    given = {
        "rgb": torch.rand(batch, 4, 3, 12, 12, generator=generator) * 2 - 1,
        "spec": torch.randn(batch, 17, 8, generator=generator),
    }
    return {m: given[m] for m in model.config.modalities}


class ByHand:
    """A forward pass of one example, layer by layer in float64, with the rollout over [rgb | spec | fusion tokens]."""

    def __init__(self, model: MBT, given: dict[str, torch.Tensor], example: int) -> None:
        self.config = model.config
        self.weights = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
        with torch.no_grad():
            self.z = {m: z[example].double().numpy() for m, z in model._tokenize(given.get("rgb"), given.get("spec")).items()}
        if self.config.has_bottleneck:
            self.z["fsn"] = self.weights["encoder.bottleneck"][0]
        stops = np.cumsum([0, *(len(z) for z in self.z.values())])
        self.places = {m: np.arange(a, b) for m, a, b in zip(self.z, stops, stops[1:], strict=False)}
        self.rollout = np.eye(stops[-1])
        for layer in range(self.config.num_layers):
            self.step(layer)

    def step(self, layer: int) -> None:
        c = self.config
        streams = list(c.modalities)
        if len(streams) == 1 or layer < c.fusion_layer or not c.test_with_bottlenecks:
            self.advance([self.block(layer, m, [m], [m]) for m in streams])
        elif not c.has_bottleneck and c.share_encoder:
            self.advance([self.block(layer, "rgb", streams, streams)])
        elif not c.has_bottleneck:
            self.advance([self.block(layer, m, [m], streams) for m in streams])
        elif c.bottleneck_update == "mean":
            self.advance([self.block(layer, m, [m, "fsn"], [m, "fsn"]) for m in streams])
        else:
            for m in streams:
                self.advance([self.block(layer, m, [m, "fsn"], [m, "fsn"])])

    def advance(self, results: list[tuple[dict[str, np.ndarray], np.ndarray]]) -> None:
        """Apply the blocks' results to their tokens; tokens that several blocks return get the mean."""
        matrix = np.zeros_like(self.rollout)
        for m, place in self.places.items():
            given = [(tokens[m], rows) for tokens, rows in results if m in tokens]
            if given:
                self.z[m] = np.mean([tokens for tokens, _ in given], axis=0)
                matrix[place] = np.mean([rows[place] for _, rows in given], axis=0)
            else:
                matrix[place, place] = 1
        self.rollout = matrix @ self.rollout

    def block(self, layer: int, m: str, queries: list[str], keys: list[str]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Run one block: new values of the token groups `queries`, which attend to `keys`, and the rollout's matrix."""
        name = f"encoder.blocks.{'shared' if self.config.share_encoder else m}.{layer}"
        x = np.concatenate([self.z[a] for a in queries])
        rows, columns = (np.concatenate([self.places[a] for a in names]) for names in (queries, keys))
        own = self.norm(f"{name}.norm1", x)
        context = self.norm(f"{name}.norm1", np.concatenate([self.z[a] for a in keys]))
        size = self.config.hidden_size // self.config.num_heads
        mixed, attention = [], []
        for head in range(self.config.num_heads):
            query, key, value = (
                self.linear(f"{name}.attention.{part}", tokens)[:, head * size : (head + 1) * size]
                for part, tokens in (("query", own), ("key", context), ("value", context))
            )
            scores = np.exp(query @ key.T / np.sqrt(size))
            attention.append(scores / scores.sum(1, keepdims=True))
            mixed.append(attention[-1] @ value)
        x = x + self.linear(f"{name}.attention.out", np.concatenate(mixed, axis=1))
        hidden = self.linear(f"{name}.mlp.fc1", self.norm(f"{name}.norm2", x))
        gelu = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
        x = x + self.linear(f"{name}.mlp.fc2", gelu)
        matrix = np.zeros_like(self.rollout)
        matrix[np.ix_(rows, columns)] = np.mean(attention, axis=0) / 2
        matrix[rows, rows] += 0.5
        stops = np.cumsum([len(self.z[a]) for a in queries])[:-1]
        return dict(zip(queries, np.split(x, stops), strict=True)), matrix

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        centered = x - x.mean(1, keepdims=True)
        scaled = centered / np.sqrt((centered**2).mean(1, keepdims=True) + 1e-6)
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def shares(self, of: tuple[str, ...]) -> dict[str, np.ndarray]:
        """The share of each token in the output of the streams `of`."""
        places = [self.places[m] for m in of]
        output = np.concatenate(places) if self.config.classifier == "gap" else np.array([place[0] for place in places])
        row = self.rollout[output].mean(0)
        return {m: row[place] for m, place in self.places.items()}

    def logits(self) -> np.ndarray:
        encoded = {m: self.norm("encoder.norm", self.z[m]) for m in self.config.modalities}
        if self.config.classifier == "gap":
            return self.linear("head", np.concatenate(list(encoded.values())).mean(0, keepdims=True))[0]
        return np.mean([self.linear("head", z[:1])[0] for z in encoded.values()], axis=0)


@pytest.mark.parametrize("classifier", ["token", "gap"])
@pytest.mark.parametrize("fields", [*VARIANTS, {"fusion_layer": 3}, {"tubelet": (2, 6, 4)}], ids=str)
def test_shares_are_rows_of_the_product_of_the_full_matrices(fields: dict[str, object], classifier: str) -> None:
    model = small(**fields, classifier=classifier)
    given = inputs(model)
    modalities = model.config.modalities
    for of in (None, *modalities):
        maps = attention_rollout(model, **given, of=of)
        assert set(maps) == set(modalities)
        for example in range(2):
            by_hand = ByHand(model, given, example)
            np.testing.assert_allclose(by_hand.logits(), model(**given)[example].detach(), rtol=1e-4, atol=1e-4)
            expected = by_hand.shares(modalities if of is None else (of,))
            for m, shares in maps.items():
                grid = (2, 2, 3) if m == "rgb" and model.config.tubelet[0] == 2 else GRIDS[m]
                patches = expected[m][classifier == "token" :].reshape(grid)
                np.testing.assert_allclose(shares[example], patches, atol=1e-7, rtol=1e-4)
                assert shares.dtype == torch.float32


def test_shares_of_all_tokens_sum_to_one() -> None:
    """With `gap` and no fusion tokens, every token is a patch; otherwise CLS and fusion tokens hold the remainder."""
    model = small(fusion="attention", classifier="gap")
    maps = attention_rollout(model, **inputs(model))
    np.testing.assert_allclose(sum(shares.flatten(1).sum(1) for shares in maps.values()), 1, atol=1e-6)
    model = small()
    maps = attention_rollout(model, **inputs(model, batch=1))
    rest = ByHand(model, inputs(model, batch=1), 0).shares(("rgb", "spec"))
    held = rest["rgb"][0] + rest["spec"][0] + rest["fsn"].sum()
    assert held > 0.01
    assert float(sum(shares.sum() for shares in maps.values())) == pytest.approx(1 - held, abs=1e-6)


@pytest.mark.parametrize(("of", "other"), [("rgb", "spec"), ("spec", "rgb")])
def test_with_late_fusion_the_other_stream_has_no_share(of: str, other: str) -> None:
    model = small(fusion_layer=3)
    maps = attention_rollout(model, **inputs(model), of=of)
    assert not maps[other].any()
    assert maps[of].all()
    assert attention_rollout(small(), **inputs(model), of=of)[other].all()


@pytest.mark.parametrize("fields", [{}, {"fusion": "attention"}, {"fusion": "attention", "share_encoder": True}])
def test_equal_attention_gives_equal_shares(fields: dict[str, object]) -> None:
    model = small(**fields)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".query." in name:
                parameter.zero_()
    maps = attention_rollout(model, **inputs(model))
    for shares in maps.values():
        np.testing.assert_allclose(shares, shares.mean(), rtol=1e-5)
    unequal = attention_rollout(small(**fields), **inputs(model))
    assert all(shares.std() > 0.01 * shares.mean() for shares in unequal.values())


def test_rollout_does_not_change_the_model() -> None:
    """Modes, gradients and hooks are restored; training mode and the caller's gradient mode do not affect the result."""
    model = small(drop_path=0.9, dropout=0.5)
    expected = attention_rollout(model, **inputs(model))
    model.train()
    model.head.eval()
    model.encoder.norm.weight.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            maps = attention_rollout(model, **inputs(model))
        for m, shares in maps.items():
            torch.testing.assert_close(shares, expected[m])
            assert not shares.requires_grad
    assert [name for name, module in model.named_modules() if not module.training] == ["head"]
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["encoder.norm.weight"]
    assert all(p.grad is None and torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_rollout_restores_the_model_after_errors() -> None:
    model = small().train()
    with pytest.raises(ValueError, match="spec is not given"):
        attention_rollout(model, rgb=inputs(model)["rgb"])
    with pytest.raises(RuntimeError):
        attention_rollout(model, rgb=inputs(model)["rgb"], spec=torch.zeros(2, 40, 8))
    with pytest.raises(ValueError, match="the model has no spec stream"):
        attention_rollout(small(modalities=("rgb",)), rgb=inputs(model)["rgb"], of="spec")
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules() if isinstance(module, Block))


def test_shares_in_bfloat16_agree_with_float32() -> None:
    """Attention weights are computed in float32, so shares sum to 1 far more precisely than bfloat16's three digits."""
    model = small(fusion="attention", classifier="gap")
    expected = attention_rollout(model, **inputs(model))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = attention_rollout(model, **inputs(model))
    half = attention_rollout(model.bfloat16(), **{m: x.bfloat16() for m, x in inputs(model).items()})
    for maps in (mixed, half):
        for m, shares in maps.items():
            assert shares.dtype == torch.float32
            np.testing.assert_allclose(shares, expected[m], rtol=0.2)
        np.testing.assert_allclose(sum(shares.flatten(1).sum(1) for shares in maps.values()), 1, atol=1e-6)
