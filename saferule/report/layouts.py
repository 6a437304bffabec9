"""The paper's tables as it prints them, ours above its own numbers, as Markdown and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import pandas as pd

from saferule.paper import table
from saferule.report.style import ATTACKS, NAMES

OURS_AND_THEIRS = {"text": "ours", "paper": "paper"}  # columns of cells, and how their rows are called
ORDER: dict[str, list] = {  # the paper's, of its Table 1; values that it has not come last
    "task": list(table(1)["task"].unique()),
    "backbone": [name.lower() for name in table(1)["policy"].unique()],
    "attack": list(ATTACKS),
    "metric": ["cost", "return", "cost_removed", "return_gained"],
}
HEADS = {"cost": "C ↓", "return": "R ↑", "cost_removed": "ΔC ↑", "return_gained": "ΔR ↑"}  # in the paper's tables
NOTHING = "–"  # where a method is not defined for a backbone
TEX = {"±": r"$\pm$", "↓": r"$\downarrow$", "↑": r"$\uparrow$", "Δ": r"$\Delta$", NOTHING: "--"}


@dataclass(frozen=True)
class Layout:
    """What tells rows and columns of a table apart, and what the parts of an entry, joined by " / "."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    entry: str = ""

    def arrange(self, cells: pd.DataFrame) -> pd.DataFrame:
        """The table: index and columns by the names of ``rows`` and ``columns``, every row ours and then the paper's.

        cells  one row per number, with the columns named here, text (ours) and paper (empty where it prints none);
               methods are in the order of the rows. A row of which the paper prints nothing has no second one.
        """
        keys = [*self.rows, *self.columns, *([self.entry] if self.entry else [])]
        ranked = cells.assign(**{name: _ordered(cells[name]) for name in keys}).drop_duplicates(keys)
        tall = ranked.rename(columns=OURS_AND_THEIRS).melt(keys, list(OURS_AND_THEIRS.values()), "", "value")
        tall[""] = pd.Categorical(tall[""], list(OURS_AND_THEIRS.values()), ordered=True)
        tall = tall.sort_values(keys, kind="stable")
        groups = tall.groupby([*self.rows, "", *self.columns], observed=True, sort=False)["value"]
        joined = groups.agg(lambda parts: " / ".join(parts) if any(parts) else "")
        wide = joined.unstack(list(self.columns)).sort_index().sort_index(axis=1).fillna("")
        ours = wide.index.get_level_values("") == "ours"
        wide = wide[ours | (wide != "").any(axis=1)].mask((wide == "") & ours[:, None], NOTHING)
        if set(wide.index.get_level_values("")) == {"ours"}:
            wide = wide.droplevel("")
        return _named(wide)


def _ordered(values: pd.Series) -> pd.Series:
    """As categories in the paper's order, then in the order in which they come; ratios ascend."""
    if pd.api.types.is_numeric_dtype(values):
        return pd.Categorical(values, sorted(values.unique()), ordered=True)
    known = [value for value in ORDER.get(str(values.name), []) if value in set(values)]
    return pd.Categorical(values, list(dict.fromkeys([*known, *values])), ordered=True)


def _named(wide: pd.DataFrame) -> pd.DataFrame:
    """With names as the paper writes them."""

    def name(level: Hashable, value: object) -> str:
        if level == "ratio":
            return f"{100 * float(str(value)):g} %"
        return HEADS[str(value)] if level == "metric" else NAMES.get(str(level), str)(str(value))

    def renamed(index: pd.Index) -> pd.Index:
        values = [v if isinstance(v, tuple) else (v,) for v in index]
        tuples = [tuple(name(level, v) for level, v in zip(index.names, own, strict=True)) for own in values]
        return pd.MultiIndex.from_tuples(tuples, names=index.names)

    return wide.set_axis(renamed(wide.index)).set_axis(renamed(wide.columns), axis=1)


def _cells(wide: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """One head line and the rows, what a row shares with the one above it left empty."""
    head = [str(level) for level in wide.index.names] + [
        ", ".join(c) if isinstance(c, tuple) else c for c in wide.columns
    ]
    rows, above = [], ()
    for index, values in zip(wide.index, wide.to_numpy().tolist(), strict=True):
        shared = next((i for i, (a, b) in enumerate(zip(index, above, strict=False)) if a != b), 0)
        rows.append([*([""] * shared), *map(str, index[shared:]), *values])
        above = index
    return head, rows


def markdown(wide: pd.DataFrame, caption: str) -> str:
    """The arranged table as Markdown, under its caption."""

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    head, rows = _cells(wide)
    return "\n".join([f"**{caption}**", "", line(head), line("---" for _ in head), *map(line, rows), ""])


def latex(wide: pd.DataFrame, caption: str, label: str) -> str:
    """The arranged table as LaTeX, as wide as the text; it needs the packages booktabs, multirow and graphicx."""
    text = wide.to_latex(escape=True, caption=_escaped(caption), label=f"tab:{label}", multicolumn_format="c")
    rules = r"(\\cline\{[\d-]+\})(?: \\cline\{[\d-]+\})*"  # of groups that end together: the widest, or the table's
    text = re.sub(rules, r"\1", re.sub(rules + r"\s(?=\\bottomrule)", "", text))
    for sign, command in TEX.items():
        text = text.replace(sign, command)
    text = text.replace(r"\begin{tabular}", "\\resizebox{\\textwidth}{!}{%\n\\begin{tabular}")
    return text.replace(r"\end{tabular}", "\\end{tabular}}")


def _escaped(text: str) -> str:
    return "".join(f"\\{sign}" if sign in "&%$#_{}" else sign for sign in text)
