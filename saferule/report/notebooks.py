"""Executed notebooks as HTML that needs nothing else: formulas are drawn, pictures become files beside the page."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import nbformat
from jinja2 import pass_context
from matplotlib.path import Path as Outline
from matplotlib.textpath import TextPath
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

EMBEDDED = re.compile(r"data:image/(png|gif);base64,([^\"]+)")
SIZE = 10  # of a formula's outline; it is shown in em
COMMANDS = {Outline.MOVETO: "M", Outline.LINETO: "L", Outline.CURVE3: "Q", Outline.CURVE4: "C"}


def page(notebook: Path, keep: Callable[[bytes, str], str]) -> tuple[str, str]:
    """Title and body of an executed notebook.

    keep  (content, suffix) of a picture -> its address as the page writes it
    """
    body, _ = _Exporter(template_name="basic", anchor_link_text="").from_filename(str(notebook))
    body = EMBEDDED.sub(lambda found: keep(b64decode(found[2]), found[1]), body)
    first = nbformat.read(notebook, as_version=4).cells[0].source
    return first.partition("\n")[0].removeprefix("# "), body


def text(markdown: str) -> str:
    """Markdown as HTML."""
    return MarkdownWithMath(renderer=_Renderer(escape=False, anchor_link_text="")).render(markdown)


class _Exporter(HTMLExporter):
    """nbconvert's, with formulas that no browser has to typeset."""

    @pass_context
    def markdown2html(self, context: Any, source: str) -> str:
        """The filter that nbconvert's templates call."""
        return text(source)


class _Renderer(IPythonRenderer):
    def inline_math(self, body: str) -> str:
        return formula(body)

    def block_math(self, body: str) -> str:
        return f'<span class="display-math">{formula(body)}</span>'


def formula(tex: str) -> str:
    """A formula as an outline in SVG, in the colour of the text around it; as it is written where mathtext cannot."""
    try:
        outline = TextPath((0, 0), f"${tex.strip()}$", size=SIZE)
    except ValueError:
        return f"<code>{escape(tex)}</code>"
    box = outline.get_extents()
    low, high = min(box.y0, 0.0), max(box.y1, 0.7 * SIZE)  # the line of the text is at 0
    steps = (
        COMMANDS[code] + " ".join(f"{x:.2f} {-y:.2f}" for x, y in values.reshape(-1, 2)) if code in COMMANDS else "Z"
        for values, code in outline.iter_segments(simplify=False, curves=True)
    )
    where = f"0 {-high:.2f} {box.x1:.2f} {high - low:.2f}"
    size = f"width: {box.x1 / SIZE:.2f}em; height: {(high - low) / SIZE:.2f}em; vertical-align: {low / SIZE:.2f}em"
    attributes = f'role="img" aria-label="{escape(tex.strip())}" viewBox="{where}" style="{size}"'
    return f'<svg class="math" {attributes}><path d="{"".join(steps)}"/></svg>'
