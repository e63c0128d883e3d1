"""Parts of HTML pages that have no scripts and load nothing; every text is escaped."""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

from matplotlib.figure import Figure

DPI = 110
TEXTS = {"clip", "example", "paused until", "retry from", "why"}
"""Table columns that hold texts, beside the first ones."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 0.5rem 0 1.5rem; }
th, td { padding: 0.15rem 0.6rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
td { overflow-wrap: break-word; }
td:last-child { overflow-wrap: anywhere; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
img { max-width: 100%; }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def document(title: str, parts: Iterable[str]) -> str:
    """A page with this title as its heading.

    Args:
        title: plain text.
        parts: HTML.
    """
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
    )
    body = "\n".join([f"<h1>{escape(title)}</h1>", *parts])
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], texts: int) -> str:
    """An HTML table. The first `texts` columns and those in TEXTS hold texts, the others numbers."""
    kinds = ["" if i < texts or name in TEXTS else ' class="n"' for i, name in enumerate(head)]

    def line(tag: str, cells: Sequence[str]) -> str:
        filled = zip(kinds, cells, strict=True)
        return f"<tr>{''.join(f'<{tag}{kind}>{escape(cell)}</{tag}>' for kind, cell in filled)}</tr>"

    return "\n".join(["<table>", line("th", head), *(line("td", row) for row in rows), "</table>"])


def image(figure: Figure, description: str) -> str:
    """A figure inside the page."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=DPI)
    return f'<p><img alt="{description}" src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"></p>'
