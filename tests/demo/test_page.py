"""The page of `mbt demo`: its numbers, its pictures, and that it needs nothing else."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from mbt.demo.clips import labels
from mbt.demo.examples import Example, shown_clips
from mbt.demo.page import demo_page
from mbt.demo.scores import KINDS, kind_map, scores_by_kind
from mbt.demo.variants import VARIANTS
from mbt.train.evaluation.figures import FrameAttention, SpecAttention

pytestmark = pytest.mark.slow

MODELS = [variant.name for variant in VARIANTS]
SCORES = {
    name: {"all": 0.1 + n / 5, "seen": 0.2 + n / 5, "heard": 0.15 + n / 5, "matched": 0.05 + n / 4}
    for n, name in enumerate(MODELS)
}
HOSTILE = "mbt predict '<b>&\"x\"</b>/clip.mp4'"


class Page(HTMLParser):
    """Tables, images, tags and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self._in_cell = False
        self.feed(html)

    @property
    def images(self) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == "img"]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        self._in_cell = tag in ("td", "th", "abbr")

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._in_cell:
            self.tables[-1][-1][-1] += data


def probability(model: int, label: int, clip: int) -> float:
    """A number in [0, 1] that differs from cell to cell."""
    return (37 * model + 11 * label + 5 * clip) % 101 / 101


@pytest.fixture(scope="module")
def examples() -> dict[str, list[Example]]:
    random = np.random.default_rng(0)
    rgb = FrameAttention(random.integers(0, 255, (4, 64, 64, 3), np.uint8), [0.4, 0.8, 1.2, 1.6], random.random((2, 4, 4)))
    spec = SpecAttention(random.normal(size=(160, 128)).astype(np.float32), (0.4, 2.0), random.random((10, 2)))
    return {
        kind: [
            Example(
                clip,
                {
                    m: {label.id: probability(i, j, clip.index) for j, label in enumerate(labels().labels)}
                    for i, m in enumerate(MODELS)
                },
                rgb,
                spec,
            )
            for clip in pair
        ]
        for kind, pair in shown_clips().items()
    }


@pytest.fixture(scope="module")
def html(examples: dict[str, list[Example]]) -> str:
    return demo_page(SCORES, examples, {"Label a clip": HOSTILE})


def test_scores_are_in_the_table(html: str) -> None:
    head, *rows = Page(html).tables[0]
    assert head == ["model", "all", "seen", "heard", "matched"]
    assert rows == [[name, *(f"{score:.3f}" for score in SCORES[name].values())] for name in MODELS]


def test_the_summary_compares_bottleneck_fusion_with_the_best_other_model(html: str) -> None:
    summary = Page(html).text.partition("bottleneck fusion reaches an mAP of ")[2]
    assert summary.startswith("0.80; the best of the other models reaches 0.55.")


def test_predictions_of_each_clip_are_in_a_table_with_the_true_labels_marked(
    html: str, examples: dict[str, list[Example]]
) -> None:
    tables = iter(Page(html).tables[1:])
    for kind in KINDS:
        for example in examples[kind]:
            head, *rows = next(tables)
            assert len(head) == 5
            wanted = [(i, label) for i, label in enumerate(labels().labels) if label.id.startswith(kind)]
            assert len(rows) == len(wanted)
            for row, (i, label) in zip(rows, wanted, strict=True):
                assert row[1:] == [f"{probability(m, i, example.clip.index):.2f}" for m in range(4)]
                assert (row[0][0] == "\N{CHECK MARK}") == (label.id in example.clip.factors.label_ids())
    assert next(tables, None) is None


def test_the_clips_differ_only_in_what_their_kind_is_about() -> None:
    pairs = {kind: [clip.factors for clip in pair] for kind, pair in shown_clips().items()}
    for kind, same in (("seen", ("sound", "rhythm")), ("heard", ("color", "shape", "motion"))):
        first, second = pairs[kind]
        fields = ("color", "shape", "motion", "sound", "rhythm")
        assert {f for f in fields if getattr(first, f) == getattr(second, f)} == set(same)
    first, second = pairs["matched"]
    assert (first.color, first.shape, first.motion, first.rhythm) == (second.color, second.shape, second.motion, second.rhythm)
    assert first.match != second.match


def test_pictures_are_inside_the_page_and_described(html: str) -> None:
    images = Page(html).images
    assert len(images) == 7
    for attributes in images:
        head, _, data = (attributes["src"] or "").partition(",")
        assert head == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
            assert min(image.size) > 300
        assert len(attributes["alt"] or "") > 40
    assert len({attributes["alt"] for attributes in images}) == 7


def test_the_page_loads_nothing(html: str) -> None:
    page = Page(html)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "audio", "video", "base"}
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action", "poster", "background"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, name)
    assert not re.search(r"url\(|@import|https?:", html)
    policies = [a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_commands_are_escaped(html: str) -> None:
    assert HOSTILE in Page(html).text
    assert "<b>" not in html


def test_kinds_average_their_own_classes() -> None:
    precision = {"seen:red": 0.5, "seen:disc": 1.0, "heard:noise": 0.25, "matched:0": 0.125}
    report = {"mAP": 0.46875, "classes": [{"id": i, "average_precision": p} for i, p in precision.items()]}
    assert scores_by_kind(report) == {"all": 0.46875, "seen": 0.75, "heard": 0.25, "matched": 0.125}
    assert kind_map(report, "seen") == 0.75
