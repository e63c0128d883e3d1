"""The page at the end of `mbt demo`: one HTML file without scripts, with its pictures inside."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from mbt.demo.clips import labels
from mbt.demo.examples import CROPS, Example
from mbt.demo.pictures import png, score_chart, view_picture
from mbt.demo.scores import KINDS, Scores
from mbt.demo.variants import BOTTLENECK
from mbt.prep.report.html import POLICY

TITLE = "mbt demo: what each model can tell"
SHORT_NAMES = {
    "video only": "video",
    "audio only": "audio",
    "late fusion": "late",
    "bottleneck fusion": "bottle\N{SOFT HYPHEN}neck",
}
"""Model names that fit above a column of a narrow table."""
INTRODUCTIONS = {
    "seen": "Color, shape and motion. The two clips have the same kind of sound and differ in everything that is seen.",
    "heard": "Sound and rhythm. The two clips show the same content and differ in everything that is heard.",
    "matched": "Certain pairs of a color and a sound. Both clips show the same content; only the sound differs, and with it "
    "the matched label. Neither stream alone can predict it, nor can any sum of their scores.",
}
STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --soft: #59636e; --line: #d1d9e0;
        --back: #ffffff; --mark: #fff1c2; --bar: #4a90c8; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6edf3; --soft: #a9b4bf; --line: #3d444d; --back: #14181d; --mark: #453a10; --bar: #4a90c8; }
}
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 66rem; margin: 0 auto; padding: 1rem; color: var(--text);
       background: var(--back); overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; }
h2 { font-size: 1.3rem; margin-top: 2.5rem; }
h3 { font-size: 1.05rem; margin: 2rem 0 0; }
h4 { font-size: 1rem; font-weight: 600; margin: 0; }
p { max-width: 44rem; }
img { display: block; width: 100%; height: auto; margin-bottom: .75rem; background: #fff; border: 1px solid var(--line);
      border-radius: 6px; }
figure { margin: 0; } figcaption, .soft { color: var(--soft); font-size: .875rem; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .875rem; }
caption { text-align: left; color: var(--soft); padding-bottom: .25rem; }
th, td { padding: .3rem .35rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top;
         font-weight: 400; }
th:first-child { text-align: left; }
thead th { font-weight: 600; vertical-align: bottom; }
tr.true { background: var(--mark); } tr.true th { font-weight: 700; }
td.p { background: linear-gradient(to right, var(--bar) var(--p), transparent var(--p)) no-repeat
       .35rem 100% / calc(100% - .7rem) .25rem; }
.clip table { table-layout: fixed; } .clip th:first-child { width: 30%; }
.clip thead th { font-size: .75rem; padding-inline: .1rem .35rem; }
pre { background: color-mix(in srgb, var(--text) 7%, var(--back)); border-radius: 6px; padding: .6rem .75rem;
      margin: .25rem 0 1rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .875rem; }
.pair { display: grid; gap: 1.5rem; margin-top: 1rem; }
.clip { display: grid; gap: .75rem; align-content: start; min-width: 0; }
@media (min-width: 48rem) {
  .result { display: grid; grid-template-columns: 3fr 2fr; gap: 2rem; align-items: start; }
  .pair { grid-template-columns: 1fr 1fr; gap: 2rem; }
}
"""


def demo_page(scores: Mapping[str, Scores], examples: Mapping[str, Sequence[Example]], commands: Mapping[str, str]) -> str:
    """The page as HTML; all text in it is escaped.

    Args:
        scores: of each model, by kind of label.
        examples: held-out clips, by kind of label.
        commands: what to do next: a command for each purpose.
    """
    parts = [
        f"<h1>{escape(TITLE)}</h1>",
        f"<p>{escape(_summary(scores))}</p>",
        "<h2>Scores</h2>",
        '<div class="result">',
        _image(png(score_chart(scores)), f"Bar chart of the scores in the table: {_summary(scores)}"),
        _score_table(scores),
        "</div>",
        "<h2>Held-out clips</h2>",
        "<p>The clips were chosen by their content, before any model was trained. The tables show the probability that each "
        f"model gives to each label, from {CROPS} views of the clip; a check mark (\u2713) marks the true labels. The pictures "
        "show the middle view, and how much each patch of it contributes to the output of bottleneck fusion (attention "
        "rollout; brighter means more).</p>",
        *(part for kind in KINDS for part in _kind_parts(kind, examples[kind])),
        "<h2>What to do next</h2>",
        *(f"<p>{escape(purpose)}</p>\n<pre><code>{escape(command)}</code></pre>" for purpose, command in commands.items()),
    ]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><title>{escape(TITLE)}</title><style>{STYLE}</style>'
    )
    body = "\n".join(parts)
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body><main>\n{body}\n</main></body></html>\n'


def _summary(scores: Mapping[str, Scores]) -> str:
    others = max(row["matched"] for name, row in scores.items() if name != BOTTLENECK.name)
    return (
        f"On the matched labels, which depend on what is seen and heard together, bottleneck fusion reaches an mAP of "
        f"{scores[BOTTLENECK.name]['matched']:.2f}; the best of the other models reaches {others:.2f}."
    )


def _score_table(scores: Mapping[str, Scores]) -> str:
    columns = list(next(iter(scores.values())))
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in ("model", *columns))
    rows = (
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{score:.3f}</td>" for score in row.values())}</tr>'
        for name, row in scores.items()
    )
    caption = "Mean average precision (mAP) on held-out clips, over all labels and by kind of label; 1 is perfect."
    return (
        f'<table id="scores"><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )


def _kind_parts(kind: str, examples: Sequence[Example]) -> Iterator[str]:
    yield f"<h3>{escape(kind.capitalize())} labels</h3>\n<p>{escape(INTRODUCTIONS[kind])}</p>"
    yield '<div class="pair">'
    for example in examples:
        content = example.clip.factors
        words = f"{content.color} {content.shape}, {content.motion}; {content.sound}, {content.rhythm}"
        picture = _image(
            png(view_picture(example.rgb, example.spec)), f"Frames and spectrogram of the clip ({words}), each with attention"
        )
        name = f"{example.clip.video_id}: {words}"
        yield f'<section class="clip"><h4>{escape(name)}</h4>{picture}{_prediction_table(kind, example)}</section>'
    yield "</div>"


def _prediction_table(kind: str, example: Example) -> str:
    head = "".join(
        f'<th scope="col"><abbr title="{escape(m)}">{escape(SHORT_NAMES[m])}</abbr></th>' for m in example.predictions
    )
    true = set(example.clip.factors.label_ids())
    rows = []
    for label in labels().labels:
        if not label.id.startswith(f"{kind}:"):
            continue
        name = label.display_name.removesuffix(f" is {kind}")
        found = (predicted[label.id] for predicted in example.predictions.values())
        cells = "".join(f'<td class="p" style="--p:{p:.0%}">{p:.2f}</td>' for p in found)
        marked, name = (' class="true"', f"\N{CHECK MARK}\N{NO-BREAK SPACE}{name}") if label.id in true else ("", name)
        rows.append(f'<tr{marked}><th scope="row">{escape(name)}</th>{cells}</tr>')
    caption = "Probability of each label, by model"
    return (
        f"<table><caption>{escape(caption)}</caption><thead><tr><th scope='col'>label</th>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _image(data: bytes, alt: str) -> str:
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'
