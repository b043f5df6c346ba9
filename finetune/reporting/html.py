"""What does a page look like? One file that needs no network, with its texts escaped and its figures inside."""

import base64
import gzip
import html
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --good: #0a7d36; --bad: #c02626; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 1.5rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; }
h2 { margin: 2rem 0 .5rem; font-size: 1.2rem; } h3 { margin: 1rem 0 .3rem; font-size: 1rem; }
p.verdict { font-size: 1.2rem; font-weight: 600; border-left: .3rem solid var(--good); padding-left: .8rem; }
div.wide { overflow-x: auto; } table { border-collapse: collapse; }
td, th { padding: .15rem .7rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line); }
td:first-child, th:first-child, .text { text-align: left; }
td.text { min-width: 12rem; overflow-wrap: anywhere; white-space: pre-wrap; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--soft); padding: .7rem; border-radius: .4rem; }
tr.bold { font-weight: 600; white-space: nowrap; } hr { border: 0; border-top: 2px dashed #c88c00; }
.bad, .cut { color: var(--bad); } .cut { text-decoration: line-through; }
.loss { color: var(--good); background: #0a7d3622; } .dim, .context, dt { opacity: .7; }
.example { border: 1px solid var(--line); border-radius: .4rem; margin: .6rem 0; padding: .2rem .8rem; }
.example p { margin: .2rem 0; } dt { text-align: right; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem .9rem; margin: .3rem 0; }
dd { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; max-height: 8rem; overflow-y: auto; }
details > summary { cursor: pointer; } .figure { min-height: 15rem; }
input, select { font: inherit; padding: .2rem .4rem; max-width: 100%; }
"""
# Nothing is fetched; plotly's parallel coordinates compile their own functions.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline' 'unsafe-eval'; img-src data: blob:"
# Unpacks plotly, which is three times as long unpacked, and draws the figures.
DRAW = """
(async () => {
  const packed = document.getElementById("plotly").textContent.trim();
  const bytes = Uint8Array.from(atob(packed), byte => byte.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
  const colour = getComputedStyle(document.body).color;
  for (const box of document.querySelectorAll(".figure")) {
    const figure = JSON.parse(box.querySelector("script").textContent);
    Object.assign(figure.layout, {paper_bgcolor: "transparent", plot_bgcolor: "transparent", font: {color: colour}});
    await Plotly.newPlot(box, figure.data, figure.layout, {responsive: true, displaylogo: false});
  }
  document.body.dataset.drawn = "yes";
})();
"""


def escape(value: object) -> str:
    """A value as HTML that shows it and does nothing else."""
    return html.escape(str(value))


def heading(title: str, level: int = 2) -> str:
    """A section's title."""
    return f"<h{level}>{escape(title)}</h{level}>"


def paragraph(content: str, style: str = "") -> str:
    """A paragraph of plain text."""
    return f'<p class="{style}">{escape(content)}</p>'


def span(style: str, content: str) -> str:
    """A piece of plain text in a style."""
    return f'<span class="{style}">{escape(content)}</span>'


def text_list(lines: Iterable[str]) -> str:
    """A list of plain texts."""
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def example(title: str, texts: Iterable[tuple[str, str]]) -> str:
    """Named texts one below the other, the long ones with a scroll bar of their own."""
    body = "".join(f"<dt>{escape(name)}</dt><dd>{escape(content)}</dd>" for name, content in texts)
    return f'<div class="example"><p class="dim">{escape(title)}</p><dl>{body}</dl></div>'


def details(summary: str, content: str) -> str:
    """HTML that is folded away under a line of plain text."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def figure(drawn: "Figure") -> str:
    """A plotly figure."""
    return f'<div class="figure"><script type="application/json">{_in_script(str(drawn.to_json()))}</script></div>'


def script_data(name: str, content: str) -> str:
    """JSON that a script of the page reads by the element's id."""
    return f'<script type="application/json" id="{escape(name)}">{_in_script(content)}</script>'


def page(title: str, *parts: str, script: str = "") -> str:
    """The whole page from parts of HTML; plotly comes with it if a part holds a figure."""
    plotly = ""
    if any('<div class="figure">' in part for part in parts):
        from plotly.offline import get_plotlyjs

        packed = base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
        plotly = f'<script type="application/octet-stream" id="plotly">{packed}</script><script>{DRAW}</script>'
    body = "\n".join([heading(title, 1), *parts, plotly, f"<script>{script}</script>" if script else ""])
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def _in_script(content: str) -> str:
    """JSON in which nothing can end the element that it stands in."""
    return content.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
