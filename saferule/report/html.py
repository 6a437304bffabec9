"""The report of a profile: pages to read from disk, made of what is stored (Jinja2, nbconvert, DataTables).

    <profile>/report/index.html         what came out, in three pictures, and the claims
    <profile>/report/cells/*.html       a page for each cell of Table 1
    <profile>/report/tables.html, ...   every table and figure that the notebooks wrote, and the executed notebooks

Nothing is made or measured here. A picture of a cell is named by what it is drawn from, so that one that is there is
not drawn again.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property, partial
from io import BytesIO
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import itables.options
import matplotlib
import pandas as pd
import seaborn as sns
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

import saferule
from saferule import unlearn
from saferule.agents.checkpoint import agent_policy, load_networks
from saferule.files import sha256, write_bytes
from saferule.report import figures, notebooks, style, tables
from saferule.report.figures import FIGURES
from saferule.report.layouts import NOTHING
from saferule.report.study import Study
from saferule.report.style import ATTACKS, backbone_label, condition
from saferule.report.tables import CELL, TABLES, Table, readable
from saferule.runs.execute import cores, process_pool
from saferule.runs.interruptible import AGENT
from saferule.runs.notebooks import execute, kernel
from saferule.runs.places import NOTEBOOKS, project_root
from saferule.runs.spec import PolicyRun, describe
from saferule.sim.film import Film, Job, film, film_all
from saferule.sim.tasks import get_task

PAGES = (
    ("index.html", "Overview"),
    ("claims.html", "Claims"),
    ("tables.html", "Tables"),
    ("figures.html", "Figures"),
    ("cells.html", "Cells"),
    ("notebooks.html", "Notebooks"),
)
NUMBER = re.compile(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?")
NO_NUMBER = ("missing", "failed", NOTHING)  # what tables write in the place of one
LONGEST = 2_000  # rows of a table that is shown; of a longer one its file is named
NUMBERS = "Means over n replicates, with 95 % intervals, beside what the paper prints; safe: episodes within the limit."
OWN = ("cells/*.html", "notebooks/*.html", "tables/*.*", "images/*.png", "images/*.gif")  # what a report consists of
FILMED = ("clean", "poisoned", tables.OURS)
DOTS_PER_PIXEL = 1.5  # of figures, which are drawn with 150 dots per inch
DRAWN_BY = (figures, style, tables, unlearn)  # what decides how rows become a picture, with matplotlib and seaborn


# What the templates are given


class Item(NamedTuple):
    """What stands in a place of a table.

    order  the number to sort by; "" where it is missing, None for words
    about  what the link leads to
    """

    text: str
    order: float | str | None = None
    link: str = ""
    about: str = ""


class Grid(NamedTuple):
    """A table."""

    caption: str
    columns: list[str]
    rows: list[list[Item]]


class Picture(NamedTuple):
    """A picture, its file relative to the report's folder, its size in CSS pixels.

    still  of a film, for who wants no motion
    """

    file: str
    alt: str
    caption: str
    width: int
    height: int
    still: str = ""


class Cell(NamedTuple):
    """A row of Table 1, which has a page."""

    task: str
    backbone: str
    attack: str
    ratio: float

    @property
    def address(self) -> str:
        """Of its page, in the report's folder."""
        return f"cells/{self.task}-{self.backbone}-{self.attack}-{self.ratio:g}.html"

    @property
    def words(self) -> dict[str, str]:
        """As tables name it."""
        named = {"task": self.task, "backbone": backbone_label(self.backbone)}
        return named | {"condition": condition(self.attack, self.ratio)}

    @property
    def names(self) -> dict[str, str]:
        """The same, and apart what the condition is made of."""
        return self.words | {"attack": ATTACKS[self.attack], "ratio": f"{100 * self.ratio:g} %"}

    def of(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The rows of this cell."""
        return rows[(rows[CELL] == list(self)).all(axis=1)] if len(rows) else rows


def grid(caption: str, frame: pd.DataFrame, cells: Iterable[Cell] = ()) -> Grid:
    """A table of texts as `tables.readable` or `tables.Table.shown` makes it, an index with names in front.

    cells  that have pages: a row that is about one leads there, or where columns have named levels, each entry
    """
    index = [name for name in frame.index.names if name is not None]
    levels, heads = list(frame.columns.names), [column if isinstance(column, tuple) else (column,) for column in frame]
    names, leads = [*index, *(", ".join(map(str, head)) for head in heads)], levels != [None]
    starts = [at if isinstance(at, tuple) else (at,) for at in frame.index] if index else [()] * len(frame)
    texts = pd.DataFrame([(*start, *row) for start, row in zip(starts, frame.to_numpy(), strict=True)]).astype(str)
    numeric = [_numeric(texts[i]) for i in texts]
    rows = []
    for values in texts.itertuples(index=False, name=None):
        row = [Item(text, _order(text) if number else None) for text, number in zip(values, numeric, strict=True)]
        known = dict(zip(names[: len(index)] if leads else names, values, strict=False))
        for i in range(len(index), len(row)) if leads else [0]:
            here = known | (dict(zip(levels, map(str, heads[i - len(index)]), strict=True)) if leads else {})
            if cell := _about(here, cells):
                row[i] = row[i]._replace(link=cell.address, about=", ".join(cell.words.values()))
        rows.append(row)
    return Grid(caption, [str(name).replace("_", " ") for name in names], rows)


def _about(known: Mapping[str, str], cells: Iterable[Cell]) -> Cell | None:
    """The cell that these entries of a table are about, where they tell one."""
    if not {"task", "backbone"} <= known.keys():
        return None
    found = [c for c in cells if all(known.get(n, t) == t for n, t in c.names.items())]
    return found[0] if len(found) == 1 else None


def _numeric(texts: Iterable[str]) -> bool:
    """Whether a column is of numbers: whatever is not a number is there for one that is missing."""
    filled = [text for text in texts if text and not text.startswith(NO_NUMBER)]
    return bool(filled) and all(map(NUMBER.match, filled))


def _order(text: str) -> float | str:
    found = NUMBER.match(text)
    return float(found[0]) if found else ""


# The report


def build(study: Study) -> Path:
    """Write the report of a study of stored runs; returns its first page."""
    return Report(study).build()


def rebuild(study: Study) -> Path:
    """The same, after the tables and figures of the paper have been made again from the stored episodes."""
    kernel()
    given = {"profile": study.profile.name, "changes": study.changes, "only_stored": True}
    given |= {"output": str(study.folder.parent.resolve()), "data": str(study.workspace.data_folder.resolve())}
    with TemporaryDirectory() as executed:
        execute(project_root() / "notebooks" / "tables.ipynb", Path(executed), given, project_root())
    return build(study)


class Report:
    """The folder, and what has been written to it."""

    def __init__(self, study: Study) -> None:
        self.study, self.root = study, study.folder / "report"
        self.about = notebooks.text(study.about)
        self.written: set[Path] = set()
        self.named: dict[str, str] = {}  # digest of a figure: its file
        self.templates = Environment(
            loader=PackageLoader("saferule.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )

    def build(self) -> Path:
        """Write every page, then remove those of earlier reports that are not written any more."""
        self._assets()
        self._figures()
        self._cells()
        self._tables()
        self._notebooks()
        self._overview()
        for path in {path for kind in OWN for path in self.root.glob(kind)} - self.written:
            path.unlink()
        return self.root / "index.html"

    # Files

    def _write(self, name: str, content: bytes) -> str:
        path = self.root / name
        self.written.add(path)
        if not (path.is_file() and path.read_bytes() == content):  # a file that stays as it is keeps its time
            write_bytes(path, content)
        return name

    def _page(self, name: str, template: str, title: str, **context: Any) -> None:
        root = "../" * name.count("/")
        shared = {"root": root, "here": name, "title": title, "pages": PAGES, "profile": self.study.profile.name}
        text = self.templates.get_template(template).render(
            **shared, made_with=self.about, version=saferule.__version__, **context
        )
        self._write(name, text.encode())

    def _assets(self) -> None:
        """The style sheet, and DataTables as itables bundles it: a module, which browsers do not load from disk."""
        for name in ("report.css", "report.js"):
            self._write(name, self.templates.loader.get_source(self.templates, name)[0].encode())
        bundle = Path(itables.options.dt_bundle)
        module = f"new Blob([{json.dumps(bundle.read_text('utf-8'))}], {{type: 'text/javascript'}})"
        self._write("datatables.js", f"const dataTables = import(URL.createObjectURL({module}));\n".encode())
        self._write("datatables.css", bundle.with_suffix(".css").read_bytes())

    def _picture(self, file: str, alt: str, caption: str = "", dots_per_pixel: float = DOTS_PER_PIXEL) -> Picture:
        with Image.open(self.root / file) as image:
            size = [round(side / dots_per_pixel) for side in image.size]
        return Picture(file, alt, caption or alt, *size)

    def _drawn(self, name: str, *rows: pd.DataFrame) -> list[Picture]:
        """The pictures of a figure of `FIGURES`, drawn where they are not there from the same rows."""
        key = hashlib.sha256(f"{name} {self.study.caption} {_drawing_code()}".encode())
        for frame in rows:
            key.update(frame.to_csv(index=False).encode())
        stem = f"images/{name}-{key.hexdigest()[:12]}"
        there = sorted(self.root.glob(f"{stem}*.png"))
        if not there and len(rows[0]):
            for where, figure in FIGURES[name].figures(*rows):
                there.append(self.root / self._write(f"{stem}{where}.png", style.png(figure, self.study.caption)))
        self.written |= set(there)
        return [self._picture(path.relative_to(self.root).as_posix(), *_told(path)) for path in there]

    # Pages

    @cached_property
    def policies(self) -> list[PolicyRun]:
        """The stored ones whose cells have pages: of Table 1 and the controls."""
        return [*self.study.part("main"), *self.study.part("controls")]

    @cached_property
    def episodes(self) -> pd.DataFrame:
        """Their final episodes, those of clean policies beside every condition."""
        rows = self.study.episodes(self.policies)
        return tables.with_clean(rows) if len(rows) else rows

    @cached_property
    def cells(self) -> dict[Cell, bool]:
        """The cells of Table 1 that the profile asks for, and whether anything of them is stored."""
        asked = {cell: None for run in self.study.plan["main"] if (cell := _cell(run)).attack != "clean"}
        there = {_cell(run) for run in self.policies}
        return {cell: cell in there for cell in asked}

    def _cells(self) -> None:
        rows = {"episodes": self.episodes, "curves": self._of_conditions(self.study.curves)}
        rows["logs"], films = self._of_conditions(self.study.logs), self._films()
        for cell in self._pages:
            own = {name: cell.of(frame) for name, frame in rows.items()}
            inside = own["logs"][own["logs"]["method"] == tables.OURS]
            main = own["episodes"][[unlearn.METHODS[m].part == "main" for m in own["episodes"]["method"]]]
            drawn = {
                "Before and after": self._drawn("unlearning-methods", main),
                "In the simulator while it unlearns": self._drawn("unlearning-curves", own["curves"]),
                f"Inside {style.look(tables.OURS).label}": self._drawn("unlearning-inside", inside),
                "Controls": self._drawn("controls", own["episodes"]) if len(own["episodes"]) > len(main) else [],
            }
            context = {"cell": cell, "drawn": drawn, "films": films.get(cell, []), "settings": self._settings(cell)}
            context |= {"numbers": grid(NUMBERS, _numbers(cell, own["episodes"]))}
            context |= {"played": grid("Cost and return of every episode, by its seed.", _played(own["episodes"]))}
            self._page(cell.address, "cell.html", ", ".join(cell.words.values()), **context)
        asked = grid("Every cell of Table 1 that the profile asks for.", self._asked(), self._pages)
        self._page("cells.html", "cells.html", "The cells of Table 1", asked=asked)

    def _of_conditions(self, rows_of: Any) -> pd.DataFrame:
        repairs = [run for run in self.policies if run.start is not None]
        return rows_of(repairs) if repairs else pd.DataFrame()

    @property
    def _pages(self) -> list[Cell]:
        """The cells that have pages."""
        return [cell for cell, there in self.cells.items() if there]

    def _asked(self) -> pd.DataFrame:
        """A row per cell: how many of its policies are stored, of how many."""
        asked = pd.DataFrame([_cell(run) for run in self.study.plan["main"]], columns=CELL).value_counts(CELL)
        there = pd.DataFrame([_cell(run) for run in self.study.part("main")], columns=CELL).value_counts(CELL)
        counts = [(*cell.words.values(), int(there.get(cell, 0)), int(asked[cell])) for cell in self.cells]
        columns = ["task", "backbone", "condition", "policies stored", "policies asked for"]
        return pd.DataFrame(counts, columns=columns)

    def _settings(self, cell: Cell) -> dict[str, str]:
        """What the repaired policies of a cell were made with, as the description of one says it."""
        run = next(run for run in self.policies if _cell(run) == cell)
        told = describe(run)
        profile, dataset = self.study.profile, self.study.dataset(cell.task)
        given = {
            "data": f"{dataset.digest()[:12]}, {len(dataset)} steps of {len(dataset.episodes())} trajectories",
            "replicates": " ".join(sorted({str(run.replicate) for run in self.policies if _cell(run) == cell})),
            "gradient steps": f"{profile.training_steps} of training, {profile.unlearning_steps} of unlearning",
            "evaluation": f"{profile.episodes} episodes per policy, cost limit {profile.cost_limit:g}",
        }
        return given | {name.replace("_", " "): _said(value) for name, value in told["in_force"]["config"].items()}

    def _films(self) -> dict[Cell, list[Picture]]:
        """An episode on the first evaluation seed of the policies that are `FILMED`, kept in ``videos/``.

        Of each task the cell in the condition of the ablations whose poisoned policy costs most above the clean one;
        the first replicate. A film that there is none of is a picture without a file, whose caption says why.
        """
        first = self.study.profile.replicates[0]
        rows = self.episodes.query("replicate == @first and method in @FILMED") if len(self.episodes) else None
        if rows is None or not self.study.profile.videos:
            return {}
        shown = {_cell(run) for run in self.study.ablated(self.policies)}
        costs = rows.groupby([*CELL, "method"])["cost"].mean().unstack()
        costs = costs[[Cell(*at) in shown for at in costs.index]].reindex(columns=list(FILMED))
        added = (costs["poisoned"] - costs["clean"]).dropna()
        harmed = [Cell(*at) for at in added.groupby("task", sort=False).idxmax()]
        jobs = {cell: [job for method in FILMED for job in self._jobs(cell, method, first)] for cell in harmed}
        every = list(chain.from_iterable(jobs.values()))
        with process_pool(cores()) as pool:  # which starts no process where all are kept
            films = {job.file: made for job, made in zip(every, film_all(every, pool), strict=True)}
        return {cell: [self._film(job, films[job.file]) for job in own] for cell, own in jobs.items()}

    def _jobs(self, cell: Cell, method: str, replicate: int) -> Iterator[Job]:
        wanted = cell._replace(attack="clean", ratio=0.0) if method == "clean" else cell
        for run in self.policies:
            if (_cell(run), run.method, run.replicate, run.readings) == (wanted, method, replicate, ()):
                folder, title = self.study.store.folder(run), f"{style.look(method).label}, replicate {replicate}"
                draw = partial(film_policy, folder / AGENT, self.study.profile.evaluation_seeds[0])
                yield Job(self.study.folder / "videos" / f"{folder.name}.gif", title, draw)

    def _film(self, job: Job, shown: Film) -> Picture:
        if shown.gif is None:
            return Picture("", "", shown.told, 0, 0)
        file = self._write(f"images/{job.file.name}", shown.gif)
        last = BytesIO()
        with Image.open(BytesIO(shown.gif)) as frames:
            frames.seek(frames.n_frames - 1)
            frames.save(last, format="png")
        still = self._write(f"images/{job.file.stem}.png", last.getvalue())
        return self._picture(file, shown.told, dots_per_pixel=1)._replace(still=still)

    def _tables(self) -> None:
        """Every table that the notebooks wrote, the paper's first by their numbers."""
        shown, left, files = [], [], sorted(self.study.folder.glob("tables/*.csv"))
        for path in sorted(files, key=lambda path: not re.fullmatch(r"table\d", path.stem)):
            if (table := self._table(path.stem)) is None:
                left.append(path.name)
                continue
            alike = [path.with_suffix(suffix) for suffix in (".csv", ".md", ".tex")]
            kept = [self._write(f"tables/{each.name}", each.read_bytes()) for each in alike if each.is_file()]
            heading, _, made = table.caption.partition(". Profile")  # the heading is not said twice
            shown.append((path.stem, heading, table._replace(caption=f"Profile{made}" if made else heading), kept))
        self._page("tables.html", "tables.html", "Tables", shown=shown, left=left)

    def _table(self, name: str) -> Grid | None:
        """A table that a notebook wrote, as it shows it; None where there is none, or it is too long for a page."""
        path, table = self.study.folder / "tables" / f"{name}.csv", TABLES.get(name)
        frame = pd.read_csv(path) if path.is_file() else pd.DataFrame()
        if not 0 < len(frame) <= LONGEST:
            return None
        heading, arranged = name.replace("-", " ").capitalize(), None
        caption = f"{heading}. {self.study.caption}" if "profile" in frame else heading
        if (text := path.with_suffix(".md")).is_file():
            caption, arranged = _arranged(text.read_text("utf-8"))
        if isinstance(table, Table) and arranged is not None:
            arranged = table.shown(frame)
        return grid(caption, readable(frame) if arranged is None else arranged, self._pages)

    def _claims(self) -> list[dict[str, Any]]:
        """The claims as the notebook `tables` judged them, each with its lines; none where it has not."""
        path = self.study.folder / "tables" / "claims.csv"
        if not path.is_file():
            return []
        judged = pd.read_csv(path, keep_default_na=False).rename(columns={"claim": "name"})
        named = ["name", "statement", "where", "verdict"]
        return [
            dict(zip(named, told, strict=True))
            | {"lines": grid("What it is judged by.", own[["line", "ours", "paper"]])}
            for told, own in judged.groupby(named, sort=False)
        ]

    def _figures(self) -> None:
        shown: dict[str, list[Picture]] = {}
        for path in _ordered(self.study.folder.glob("figures/*.png"), FIGURES):
            file = self._write(f"images/{path.name}", path.read_bytes())
            self.named[sha256(path)] = file
            shown.setdefault(_owner(path.stem, FIGURES), []).append(self._picture(file, *_told(path)))
        named = {name: _heading(FIGURES[name].title) if name in FIGURES else name for name in shown}
        self._page("figures.html", "figures.html", "Figures", shown=shown, named=named)
        self.figures = shown

    def _notebooks(self) -> None:
        def keep(content: bytes, suffix: str) -> str:
            digest = hashlib.sha256(content).hexdigest()
            return "../" + (self.named.get(digest) or self._write(f"images/{digest[:12]}.{suffix}", content))

        titles = {}
        for name in NOTEBOOKS:
            if (path := self.study.folder / "notebooks" / f"{name}.ipynb").is_file():
                titles[name], body = notebooks.page(path, keep)
                self._page(f"notebooks/{name}.html", "notebook.html", titles[name], body=body)
        missing = [name for name in NOTEBOOKS if name not in titles]
        self._page("notebooks.html", "notebooks.html", "Executed notebooks", titles=titles, missing=missing)

    def _overview(self) -> None:
        pictures = {name: self.figures.get(f"overview-{name}", []) for name in ("attack", "methods", "controls")}
        there = sum(self.cells.values())
        context = {"pictures": pictures, "there": there, "asked": len(self.cells), "about": self.about}
        context |= {"cell": next(iter(self._pages), None), "claims": self._claims(), "audit": self._table("audit")}
        self._page("claims.html", "claims.html", "The paper's claims", claims=context["claims"])
        self._page("index.html", "index.html", "Safe-RULE, made again", **context)


def film_policy(agent: Path, seed: int, title: str) -> Film:
    """An episode of the policy in a file, at its mode; without its networks, the reason."""
    if not agent.is_file():
        return Film(None, f"{title}: no film, as its networks are not kept.")
    saved = load_networks(agent)
    return film(get_task(saved.task), agent_policy(saved.backbone, saved.cfg, saved.nets, [seed]), seed, title)


def _cell(run: PolicyRun) -> Cell:
    return Cell(run.task, run.backbone, run.attack, run.ratio)


def _drawing_code() -> str:
    sources = "".join(inspect.getsource(module) for module in DRAWN_BY)
    return f"{matplotlib.__version__} {sns.__version__} {hashlib.sha256(sources.encode()).hexdigest()}"


def _told(path: Path) -> tuple[str, str]:
    """Text alternative and caption of a figure, of what `style.png` writes into it."""
    with Image.open(path) as image:
        title, *more = (str(image.info.get(name, "")) for name in style.TOLD)
    alt, caption = (". ".join(filter(None, [title or path.stem, each])) for each in more)
    return alt, caption


def _arranged(markdown: str) -> tuple[str, pd.DataFrame]:
    """Caption and table of a file that `Study.arranged` wrote; what a row shares with the one above is in it again."""
    caption, *lines = filter(None, markdown.splitlines())
    heads, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    frame = pd.DataFrame(rows, columns=heads)
    shared = heads[: heads.index("")] if "" in heads else []
    frame[shared] = frame[shared].replace("", pd.NA).ffill()
    return caption.strip("*"), frame


def _owner(stem: str, names: Iterable[str]) -> str:
    """The name that a file's begins with, the longest of several; of none its own."""
    return max((name for name in names if stem == name or stem.startswith(f"{name}-")), key=len, default=stem)


def _ordered(paths: Iterable[Path], names: Iterable[str]) -> list[Path]:
    order = {name: i for i, name in enumerate(names)}
    return sorted(paths, key=lambda path: (order.get(_owner(path.stem, order), len(order)), path.stem))


def _heading(title: str) -> str:
    """The title of a figure without what distinguishes one of its pictures from the others."""
    which, _, rest = title.partition(": ")
    text = re.sub(r"\{(\w+)\}", r"each \1", rest if "{" in which else title)
    return text[0].upper() + text[1:]


def _said(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _numbers(cell: Cell, episodes: pd.DataFrame) -> pd.DataFrame:
    """A row per method of a cell: cost and return, ours and the paper's, the share of safe episodes, n."""
    means, theirs = tables.replicate_means(episodes), cell.of(TABLES["methods"].theirs)
    ours = tables.over_replicates(means, list(style.METRICS)).set_index(["method", "metric"])
    printed = theirs.drop_duplicates(["method", "metric"]).set_index(["method", "metric"])["value"]
    safe = means.groupby("method")["safe_share"].mean()
    rows = []
    for method in style.in_order(means["method"]):
        row: dict[str, Any] = {"method": style.look(method).label}
        for metric in style.METRICS:
            own, paper = ours.loc[method, metric], printed.get((method, metric))
            half = f" ± {own['high'] - own['mean']:.1f}" if own["n"] > 1 else ""
            row[metric] = f"{own['mean']:.1f}{half}" if own["n"] else "failed"
            row[f"paper's {metric}"] = "" if paper is None else f"{paper:.1f}"
        share = "" if pd.isna(safe[method]) else f"{100 * safe[method]:.3g} %"
        rows.append(row | {"safe": share, "n": ours.at[(method, "cost"), "n"]})
    return pd.DataFrame(rows)


def _played(episodes: pd.DataFrame) -> pd.DataFrame:
    """A row per replicate and seed, a column per method: cost, then return."""
    text = episodes["cost"].map("{:.0f}".format) + " · " + episodes["return"].map("{:.1f}".format)
    text = text.mask(tables.failed(episodes), "failed")
    wide = episodes.assign(text=text).pivot(index=["replicate", "seed"], columns="method", values="text")
    wide = wide[style.in_order(wide.columns)].rename(columns=lambda method: style.look(method).label)
    return wide.rename_axis(columns=None).fillna("")
