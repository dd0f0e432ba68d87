"""The report is one page that a browser shows at any width, and its knobs say what Python says."""

import io
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from axe_playwright_python.sync_playwright import Axe
from committed import committed_results, read_committed
from playwright.sync_api import Browser, Page, expect

import chatbot_arch.measure.choice as choice
import chatbot_arch.measure.claims as claims
import chatbot_arch.measure.document as document
import chatbot_arch.measure.publish as publish
import chatbot_arch.measure.report as report
import chatbot_arch.measure.results as results
import chatbot_arch.measure.tables as tables

expect.set_options(timeout=60_000)  # a busy machine needs more than Playwright's five seconds
PICTURES = Path(__file__).parent.parent / "docs" / "pages"
RUN = committed_results("claims")
FRAME = pd.read_csv(io.StringIO(read_committed("claims.csv")), dtype={"value": float})
SIMULATED = committed_results("simulation")
APART = {
    name: (
        committed_results(name),
        pd.read_csv(io.StringIO(read_committed(f"{name}.csv")), dtype={"value": float}),
    )
    for name in ("clusters", "swaps")
}
MEASURED = choice.to_measured(RUN, FRAME, SIMULATED)
KNOBS = choice.knobs_of(MEASURED)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the report on the committed run."""
    written = tmp_path_factory.mktemp("report") / "report.html"
    written.write_text(document.render(RUN, FRAME, SIMULATED, APART), encoding="utf-8")
    return written


@pytest.fixture
def page(browser: Browser, path: Path) -> Iterator[Page]:
    """Open the report, and see afterwards that it asked for nothing else and had no error."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    tab, asked, errors = context.new_page(), [], []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto(path.as_uri())
    yield tab
    context.close()
    assert asked == [path.as_uri()]
    assert not errors


def test_report_stands_alone_and_is_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.encode()) < 1_500_000
    assert not re.search(r"(src|href)=\"(?!#)", text)
    parts = ("resolved", "verdicts", "case", "beyond", *APART, "claims")
    order = [text.index(f'id="{part}"') for part in parts]
    assert order == sorted(order)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 820, 1280])
def test_report_fits_every_width(page: Page, width: int, scheme: str) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    for details in page.locator("details").all():
        details.evaluate("each => each.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_report_is_accessible(page: Page, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    found = Axe().run(page).response
    assert len(found["passes"]) > 10
    assert not [(each["id"], each["help"]) for each in found["violations"]]


def test_report_shows_every_round_of_every_claim(page: Page) -> None:
    articles, judged = (
        page.locator("article"),
        RUN["claims"] + [record for run, _ in APART.values() for record in run["claims"]],
    )
    expect(articles).to_have_count(len(judged))
    for claim, article in zip(judged, articles.all(), strict=True):
        expect(article.locator("h3")).to_contain_text(claim["claim"])
        expect(article.locator("h3")).to_contain_text(claim["verdict"])
        timed = claim["low"] is not None
        expect(article.locator("svg")).to_have_count(1 + timed)
        points = article.locator("svg g[clip-path] use")  # both values, the ratio, the median
        expect(points).to_have_count((3 * claim["n"] + 1) if timed else 2 * claim["n"])
        expect(article.locator("tbody tr")).to_have_count(claim["n"])


def test_parts_apart_name_the_programs_beside_ours(page: Page) -> None:
    for name, (run, _) in APART.items():
        beside = tables.name_programs(run)
        assert beside
        expect(page.locator(f"#{name} + p")).to_contain_text(f", with {beside}.")


def test_verdicts_begin_with_those_that_are_published(page: Page) -> None:
    first, others = (page.locator(f"#{part} tr td:first-child") for part in ("published", "others"))
    assert first.all_inner_texts() == [
        claim["number"] for claim in RUN["claims"] if claim["number"] in claims.PUBLISHED
    ]
    expect(others).to_have_count(len(RUN["claims"]) - len(claims.PUBLISHED))


def test_report_can_be_printed(page: Page) -> None:
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    for hidden in page.locator("nav, .rows").all():
        expect(hidden).to_be_hidden()
    for shown in page.locator("table").all():
        if not shown.evaluate("each => each.closest('.rows')"):
            expect(shown).to_be_visible()
    assert len(page.pdf(format="A4")) > 100_000


def test_committed_report_is_that_of_the_committed_run(path: Path) -> None:
    drawn = r"(?s)<svg.*?</svg>"
    here, committed = path.read_text(encoding="utf-8"), read_committed("report.html")
    assert re.sub(drawn, "", here) == re.sub(drawn, "", committed)


def set_knob(page: Page, name: str, value: object) -> None:
    place = str(KNOBS[name].positions.index(value))
    knob = page.locator(f"#{name}")
    if KNOBS[name].unit:
        knob.fill(place)
        expect(page.locator(f"#{name}-told")).to_have_text(f"{value} {KNOBS[name].unit}")
    else:
        knob.select_option(place)


def test_knobs_say_what_python_says(page: Page) -> None:
    edges = [(each.positions[0], each.positions[-1]) for each in KNOBS.values()]
    cases = [dict(zip(KNOBS, values, strict=True)) for values in itertools.product(*edges)]
    for case in [choice.start_of(KNOBS), *cases[::7]]:
        for name, value in case.items():
            set_knob(page, name, value)
        name_of_last = next(reversed(case))
        said = choice.answer(MEASURED, case)
        expect(page.locator("#answer strong")).to_have_text(choice.conclude(said))
        ordered = [
            f"{name}. {each}"
            for side in choice.HEADINGS
            for name, each in said.items()
            if each.side == side
        ]
        expect(page.locator("#answer li")).to_have_text(ordered)
        topics = [topic.name for topic in choice.TOPICS if name_of_last in topic.knobs]
        below = [f"{topic}. {said[topic]}" for topic in topics]
        expect(page.locator(f"#{name_of_last}-now li")).to_have_text(below)
        expect(page.locator(".now li")).to_have_count(len(below))


@pytest.mark.parametrize(
    ("name", "width", "scheme", "part"),
    [
        ("report", 1280, "light", "resolved"),
        ("report_case", 1280, "light", "case"),
        ("report_phone_dark", 390, "dark", "claims"),
    ],
)
def test_pictures_show_the_page_as_it_is(
    page: Page, tmp_path: Path, name: str, width: int, scheme: str, part: str
) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    for knob, value in {"people": 64, "cores": 16, "a_week": 5, "what": choice.MODEL}.items():
        set_knob(page, knob, value)
    page.evaluate("part => document.getElementById(part).scrollIntoView()", part)
    expect(page.locator(f"#{part}")).to_be_in_viewport()
    folder = PICTURES if os.environ.get("CHATBOT_PICTURES") else tmp_path
    page.screenshot(path=folder / f"{name}.png")


def test_page_without_scripts_keeps_the_first_answer(browser: Browser, path: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(path.as_uri())
    said = choice.answer(MEASURED, choice.start_of(KNOBS))
    expect(tab.locator("#answer")).to_contain_text(choice.conclude(said))
    expect(tab.locator("#answer li")).to_have_count(len(said))
    context.close()


def test_run_without_some_experiments_is_shown() -> None:
    frame = FRAME[FRAME.experiment.isin(["one_person", "crash"])]
    numbers = [record["number"] for record in RUN["claims"]]
    run = RUN | {"claims": tables.judge_frame(frame, numbers)}
    text = document.render(run, frame)
    assert text.count("<article") == len(numbers)
    assert "too few rows" in text


def test_figure_and_page_are_written_again_from_the_files(tmp_path: Path) -> None:
    stem = tmp_path / "claims"
    with pytest.raises(results.MeasureError, match="make compare"):
        report.show(stem)
    results.write_json(RUN | {"claims": RUN["claims"][:3]}, stem.with_suffix(".json"))
    FRAME.to_csv(stem.with_suffix(".csv"), index=False)
    assert [each.name for each in report.show(stem)] == ["claims.svg", "claims.png", "report.html"]


def test_tables_are_published_in_all_texts_or_in_none(tmp_path: Path) -> None:
    stem = tmp_path / "claims"
    results.write_json(RUN, stem.with_suffix(".json"))
    FRAME.to_csv(stem.with_suffix(".csv"), index=False)
    marks = "<!-- {0} -->\nold\n<!-- end of {0} -->\n"
    readme, page = tmp_path / "README.md", tmp_path / "docs" / "claims.md"
    page.parent.mkdir()
    readme.write_text("Before.\n" + marks.format("verdicts") + "After.\n")
    page.write_text(marks.format("verdicts"))
    with pytest.raises(results.MeasureError, match="margins"):
        publish.publish(stem, tmp_path)
    assert "old" in readme.read_text()
    page.write_text(marks.format("verdicts") + marks.format("margins"))
    assert publish.publish(stem, tmp_path) == [page, readme]
    assert readme.read_text().startswith("Before.\n<!-- verdicts -->\n\n|")
    assert readme.read_text().endswith("<!-- end of verdicts -->\nAfter.\n")
    again = readme.read_text()
    publish.publish(stem, tmp_path)
    assert readme.read_text() == again


@pytest.mark.parametrize(
    ("name", "file", "blocks"),
    [
        ("clusters", "cluster.md", ("verdicts", "runs")),
        ("swaps", "swaps.md", ("verdicts", "runs", "swaps", "pages", "backends")),
    ],
)
def test_other_forms_are_published_on_their_own_pages(
    tmp_path: Path, name: str, file: str, blocks: tuple[str, ...]
) -> None:
    run, frame = APART[name]
    stem, page = tmp_path / name, tmp_path / "docs" / file
    page.parent.mkdir()
    page.write_text("".join(f"<!-- {each} -->\nold\n<!-- end of {each} -->\n" for each in blocks))
    for path in (stem, stem.with_name(f"{name}-first")):
        results.write_json(run, path.with_suffix(".json"))
        frame.to_csv(path.with_suffix(".csv"), index=False)
    assert publish.publish(stem, tmp_path) == [page]
    number = len(claims.FORMS[name])
    assert f"{number} of {number} verdicts are the same in both runs" in page.read_text()
    assert "\nold\n" not in page.read_text()


def test_run_with_a_failed_step_is_not_published(tmp_path: Path) -> None:
    run, frame = APART["swaps"]
    records = [
        each | {"why": "No browser was found."} if "swap_page" in each["rows"] else each
        for each in run["claims"]
    ]
    results.write_json(run | {"claims": records}, tmp_path / "swaps.json")
    frame[frame.experiment != "swap_page"].to_csv(tmp_path / "swaps.csv", index=False)
    with pytest.raises(results.MeasureError, match=r"swap_page was not measured.*No browser"):
        publish.publish(tmp_path / "swaps", tmp_path)


@pytest.mark.parametrize("name", ["claims", *APART])
def test_part_of_a_run_is_not_published(tmp_path: Path, name: str) -> None:
    results.write_json(RUN, tmp_path / f"{name}-only.json")
    FRAME.to_csv(tmp_path / f"{name}-only.csv", index=False)
    with pytest.raises(results.MeasureError, match="all claims"):
        publish.publish(tmp_path / f"{name}-only", tmp_path)


def test_quick_run_is_not_published(tmp_path: Path) -> None:
    results.write_json(RUN | {"form": "quick"}, tmp_path / "claims.json")
    FRAME.to_csv(tmp_path / "claims.csv", index=False)
    with pytest.raises(results.MeasureError, match="full"):
        publish.publish(tmp_path / "claims", tmp_path)
