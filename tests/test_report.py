"""The report: pages written from a tiny real store, read as files and in a real Chromium, from disk."""

import json
import os
import re
import shutil
import time
from base64 import b64encode
from pathlib import Path
from urllib.parse import unquote, urldefrag

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from saferule.attack.poison import save_forget_set
from saferule.report import html, notebooks, style
from saferule.report.study import Study
from saferule.report.tables import cell_means
from saferule.runs import engine
from saferule.runs.execute import InProcess
from saferule.runs.work import FORGET

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
CHANGES = {"training_steps": 4, "unlearning_steps": 4, "episodes": 2, "curve_episodes": 1, "videos": False}
PAGE = "cells/CarCircle-cpq-max_cost-0.15.html"
PHONE, DESK = (390, 844), (1280, 900)


@pytest.fixture(scope="module")
def study(tmp_path_factory, data_folder, car_forget) -> Study:
    """One cell made, a second one asked for; two tables, two figures and a notebook that were shown."""
    place = {"output": tmp_path_factory.mktemp("report"), "data": data_folder, "changes": CHANGES}
    chosen = {"tasks": ["CarCircle"], "attacks": ["max_cost"], "replicates": [0]}
    made = Study("smoke", backbones=["cpq"], ratios=[0.15], **chosen, **place)
    (forget,) = made.plan["forget sets"]
    with made.store.write(forget) as folder:
        save_forget_set(car_forget, folder / FORGET)
    policies = made.plan["main"]
    evaluations = [run for run in made.plan["evaluations"] if run.policy in policies]
    engine.make([*policies, *evaluations], made.workspace, InProcess(), lambda line: None)
    episodes = made.episodes(policies)
    for name in ("table1", "methods", "counts"):
        made.table(name, episodes)
    made.figure("overview-methods", cell_means(episodes))
    made.figure("unlearning-methods", episodes)
    image = next((made.folder / "figures").glob("overview-*.png")).read_bytes()
    shown = new_output(
        "display_data", {"image/png": b64encode(image).decode()}, metadata={"image/png": {"alt": "every method"}}
    )
    cells = [
        new_markdown_cell("# What is learned\n\nOn $\\mathcal{D}_f$ and $\\nothing{x}$:\n\n$$x_i \\leq \\frac{1}{2}$$"),
        new_code_cell("study.figure()", outputs=[shown, new_output("stream", name="stdout", text="<b> & so on")]),
    ]
    judged = {"claim": "repairs", "statement": "It repairs.", "where": "Table 1", "verdict": "refuted"}
    lines = {"line": ["lower cost", "higher return"], "ours": ["0.2 (0.1 to 0.3)", "0.9 (0.8 to 1.0)"], "paper": ""}
    made.save(pd.DataFrame(judged | lines), "claims")
    (made.folder / "notebooks").mkdir()
    nbformat.write(new_notebook(cells=cells), made.folder / "notebooks" / "train.ipynb")
    return Study("smoke", backbones=["cpq", "bcq-lag"], ratios=[0.15], only_stored=True, **chosen, **place)


@pytest.fixture(scope="module")
def report(study) -> Path:
    return html.build(study).parent


def pages_of(report: Path) -> dict[str, BeautifulSoup]:
    return {
        path.relative_to(report).as_posix(): BeautifulSoup(path.read_text(), "html.parser")
        for path in report.rglob("*.html")
    }


# As files


def test_a_page_for_each_thing(report):
    assert set(pages_of(report)) == {name for name, _ in html.PAGES} | {PAGE, "notebooks/train.html"}


def test_every_link_leads_to_something_on_disk(report):
    pages, followed = pages_of(report), 0
    for name, page in pages.items():
        for tag in page.find_all(["a", "img", "link", "script"]):
            address = tag.get("href") or tag.get("src")
            if address == "data:,":  # no icon is asked for
                continue
            file, fragment = urldefrag(unquote(address))
            target = (report / name).parent / file if file else report / name
            assert target.is_file() and target.resolve().is_relative_to(report.resolve()), f"{name}: {address}"
            if fragment:
                assert pages[target.resolve().relative_to(report.resolve()).as_posix()].find(id=fragment), address
            followed += 1
    assert followed > 50


def test_pages_can_be_read_without_seeing_or_scripts(report):
    for name, page in pages_of(report).items():
        assert page.html["lang"] == "en" and page.title.text and len(page.main.find_all("h1", recursive=False)) == 1
        assert all(image.get("alt", "").strip() for image in page.find_all("img")), name
        for table in page.select("main > .scroll table, section table"):
            assert table.caption.text.strip() and table.tbody.find_all("tr") and table.th["scope"] == "col"
            assert all(row.th["scope"] == "row" for row in table.tbody.find_all("tr"))
        assert page.find("a", class_="skip")["href"] == "#" + page.main["id"]


def test_a_cell_has_its_methods_settings_and_episodes(report, study):
    page = pages_of(report)[PAGE]
    methods = [style.look(run.method).label for run in study.part("main")]
    numbers, played = page.find_all("table")
    assert [row.th.text for row in numbers.tbody.find_all("tr")] == methods
    assert [th.text for th in played.thead.find_all("th")] == ["replicate", "seed", *methods]
    rows = study.episodes(study.part("main")).query("method == 'safe-rule'").set_index("seed")
    for row in played.tbody.find_all("tr"):
        texts = [cell.text for cell in row.find_all(["th", "td"])]
        own = rows.loc[int(texts[1])]
        assert texts[2 + methods.index("Safe-RULE")] == f"{own['cost']:.0f} · {own['return']:.1f}"
    settings = dict(zip(*([tag.text for tag in page.find_all(name)] for name in ("dt", "dd")), strict=True))
    assert settings["replicates"] == "0" and settings["cost limit"] == "10.0" and settings["data"].startswith(
        study.dataset("CarCircle").digest()[:12]
    )  # fmt: skip


def test_cells_that_are_missing_are_named_without_a_page(report, study):
    rows = [
        [cell.find(string=True) for cell in row.find_all(["th", "td"])]
        for row in pages_of(report)["cells.html"].tbody.find_all("tr")
    ]
    asked = str(sum((run.backbone, run.attack) == ("cpq", "max_cost") for run in study.plan["main"]))
    assert ["CarCircle", "BCQ-Lag", "Max Cost 15 %", "0", asked] in rows
    assert ["CarCircle", "CPQ", "Max Cost 15 %", asked, asked] in rows
    links = pages_of(report)["cells.html"].main.find_all("a")
    assert [link["href"] for link in links] == [PAGE] and links[0].text == "CarCircle, CarCircle, CPQ, Max Cost 15 %"


def test_claims_have_their_verdicts_and_what_these_are_judged_by(report):
    overview, page = (pages_of(report)[name] for name in ("index.html", "claims.html"))
    assert overview.find("a", href="claims.html#repairs").parent.text.split() == "refuted It repairs.".split()
    rows = [[cell.text for cell in row.find_all(["th", "td"])] for row in page.find(id="repairs").tbody.find_all("tr")]
    assert rows == [["lower cost", "0.2 (0.1 to 0.3)", ""], ["higher return", "0.9 (0.8 to 1.0)", ""]]


def test_formulas_are_drawn_and_what_cannot_be_is_written(report):
    text = str(pages_of(report)["notebooks/train.html"])
    assert text.count("<svg") == 2 and "<code>\\nothing{x}</code>" in text and "$" not in text
    assert "&lt;b&gt; &amp; so on" in text and 'alt="every method"' in text and "base64" not in text


@pytest.mark.parametrize("path", sorted(Path(__file__).parent.parent.glob("notebooks/*.ipynb")), ids=lambda p: p.stem)
def test_every_formula_of_the_notebooks_can_be_drawn(path):
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")
    for formula in re.findall(r"\$\$?(.+?)\$\$?", text):
        assert notebooks.formula(formula).startswith("<svg"), formula


CELLS = [html.Cell("CarCircle", "cpq", "max_cost", ratio) for ratio in (0.05, 0.15)]


def test_numbers_are_ordered_as_numbers_and_rows_lead_to_their_cells():
    frame = pd.DataFrame({"task": "CarCircle", "backbone": "CPQ", "condition": ["Max Cost 15 %", "clean"]})
    frame = frame.assign(words=["5 apples", "none"], mean=["10.5 ± 2", "missing / 3"], share=["5 %", "12 %"])
    rows = html.grid("", frame, CELLS).rows
    assert [[item.order for item in row[3:]] for row in rows] == [[None, 10.5, 5.0], [None, "", 12.0]]
    assert [[item.link for item in row if item.link] for row in rows] == [[CELLS[1].address], []]


def test_entries_of_a_wide_table_lead_to_their_cells():
    heads = pd.MultiIndex.from_tuples([("CarCircle", "5 %"), ("CarCircle", "15 %")], names=["task", "ratio"])
    index = pd.MultiIndex.from_tuples([("CPQ", "Max Cost"), ("CPQ", "Min Reward")], names=["backbone", "attack"])
    made = html.grid("", pd.DataFrame([["1", "2"], ["3", "4"]], index, heads), CELLS)
    assert made.columns == ["backbone", "attack", "CarCircle, 5 %", "CarCircle, 15 %"]
    assert [[item.text for item in row] for row in made.rows][0] == ["CPQ", "Max Cost", "1", "2"]
    assert [[item.link for item in row[2:]] for row in made.rows] == [[cell.address for cell in CELLS], ["", ""]]


def test_a_report_that_is_made_again_draws_and_changes_nothing(report, study, monkeypatch):
    def times():
        return {path: path.stat().st_mtime_ns for path in report.rglob("*") if path.is_file()}

    before, stale, own = times(), report / "cells" / "gone.html", report / "notes.txt"
    stale.write_text("of an earlier report")
    own.write_text("somebody's")
    monkeypatch.setattr(style, "png", None)
    html.build(study)
    assert own.read_text() == "somebody's"
    own.unlink()
    assert times() == before


# In a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not (CHROMIUM and DRIVER):
        pytest.skip("no chromium and chromedriver: apt-get install chromium chromium-driver")
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("chromium")
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", f"user-data-dir={profile}"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    os.environ.setdefault("SE_OFFLINE", "true")  # selenium asks nobody for another driver
    with Chrome(options, Service(DRIVER)) as driver:
        yield driver


def opened(browser, page: Path, size=DESK, colours="light", scripts=True) -> None:
    """The page, laid out for a screen of this size, and what its scripts do done."""
    width, height = size
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    preferred = {"name": "prefers-color-scheme", "value": colours}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [preferred]})
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not scripts})
    browser.get(page.as_uri())
    patience = time.monotonic() + 60
    while scripts and not browser.execute_script("return document.documentElement.classList.contains('ready')"):
        assert time.monotonic() < patience, f"{page} never became ready: {browser.get_log('browser')}"
        time.sleep(0.05)


def column(browser, table: str, index: int) -> list[str]:
    script = (
        "return [...document.querySelectorAll(arguments[0] + ' tbody tr')].map(r => r.cells[arguments[1]].innerText)"
    )
    return browser.execute_script(script, table, index)


def test_pages_open_from_disk_without_errors_or_requests(report, browser):
    for name in pages_of(report):
        browser.get_log("performance")
        opened(browser, report / name)
        browser.execute_script("document.querySelectorAll('img').forEach(image => image.loading = 'eager')")
        broken = "return [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
        assert browser.execute_script(broken) == [] and browser.get_log("browser") == [], name
        events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
        asked = [each["request"]["url"] for each in sent if each["documentURL"].startswith("file:")]
        assert asked and all(url.startswith(("file:", "data:", "blob:")) for url in asked), name


def test_tables_are_filtered_and_sorted(report, browser):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    opened(browser, report / PAGE)
    table = "main > .scroll table"
    methods, costs = column(browser, table, 0), [float(cost) for cost in column(browser, table, 1)]
    head = browser.find_element(By.CSS_SELECTOR, f"{table} th:nth-child(2) [role=button]")
    head.send_keys(Keys.ENTER)
    assert [float(cost) for cost in column(browser, table, 1)] == sorted(costs)
    head.send_keys(Keys.ENTER)
    assert [float(cost) for cost in column(browser, table, 1)] == sorted(costs, reverse=True)
    browser.find_element(By.CSS_SELECTOR, "main > .scroll input").send_keys("trajdeleter")
    assert set(column(browser, table, 0)) == {name for name in methods if "Trajdeleter" in name} != set()
    folded = "return [...document.querySelectorAll('details')].map(each => each.open)"
    assert browser.execute_script(folded) == [False]
    browser.execute_cdp_cmd("Page.printToPDF", {})  # what is printed is whole
    assert browser.execute_script(folded) == [True]


@pytest.mark.parametrize("scripts", [True, False])
def test_a_phone_shows_pages_whole(report, browser, scripts):
    for name in pages_of(report):
        opened(browser, report / name, PHONE, scripts=scripts)
        size = browser.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
        assert size["width"] <= PHONE[0], name
    opened(browser, report / PAGE, scripts=False)
    document = browser.execute_cdp_cmd("DOMSnapshot.captureSnapshot", {"computedStyles": []})
    assert any("Trajdeleter" in text for text in document["strings"])


def test_light_and_dark_have_enough_contrast(report, browser):
    """Of text against the ground, as WCAG 2 computes it: at least 4.5, for what is quiet too."""
    seen = {}
    for colours in ("light", "dark"):
        opened(browser, report / PAGE, colours=colours)
        style_of = "return arguments[0].map(s => getComputedStyle(document.querySelector(s)).color)"
        ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        texts = browser.execute_script(style_of, ["body", "main a", "caption", "footer p", "nav a", "td"])
        seen[colours] = luminance(ground)
        for text in texts:
            light, dark = sorted([luminance(text), luminance(ground)], reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (colours, text, ground)
    assert seen["light"] > 0.8 > 0.1 > seen["dark"]


def luminance(colour: str) -> float:
    shares = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
