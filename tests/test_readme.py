"""The README is short, and its numbers are those of results/."""

import re
from pathlib import Path
from typing import Any

import pytest
from committed import committed_results

import chatbot_arch.measure.bench_backend as bench_backend
import chatbot_arch.measure.bench_pages as bench_pages
import chatbot_arch.measure.claims as claims
import chatbot_arch.measure.engines_report as engines_report
import chatbot_arch.measure.publish as publish
import chatbot_arch.measure.tables as tables

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150
    told = re.sub(r"(?s)```.*?```", "", README)
    words = [line.split() for line in told.splitlines() if not line.startswith("|")]
    assert sum(map(len, words)) <= 900


RUNS = [
    {claim["number"]: claim for claim in committed_results(name)["claims"]}
    for name in ("claims-first", "claims")
]
FIRST_WORD = ("1b", "no difference")
OPEN = "cannot be told here"
# What a text says about a claim, and the verdict without which it may not say so.
SAID = {
    "README.md": {
        "the first word stays within its margin": FIRST_WORD,
        "whether by more than a tenth cannot be told here": ("1c", OPEN),
        "a second backend on the same cores makes fewer tokens": ("16b", "does not hold"),
        "No gain in speed was found": ("10a", OPEN),
        "10a was open in the first": ("10a", OPEN),
        "the page goes on, without answers, when the model's process dies": ("12a", "holds"),
        "it is restarted without its model": ("15", "holds"),
    },
    "nbs/index.ipynb": {
        "the first word stays within its margin": FIRST_WORD,
        "whether a reply takes a tenth longer is open": ("1c", OPEN),
        "the page goes on when the model's process dies": ("12a", "holds"),
        "it is restarted without its model": ("15", "holds"),
    },
    "nbs/08_which_one.ipynb": {
        "a quarter of a second later, in both (26b": ("26b", "does not hold"),
        "in both (26b, 26d)": ("26d", "does not hold"),
        "leaves the first word within its margin (1a": ("1a", "no difference"),
        "the first word within its margin (1a, 1b)": FIRST_WORD,
        "Whether one person's reply takes a tenth longer is open (1c)": ("1c", OPEN),
        "costs several times the wait (4b)": ("4b", "holds"),
        "Memory differs by less than a tenth (7)": ("7", "no difference"),
        "a second backend doubles the tokens (16a)": ("16a", "holds"),
        "on the same cores, there are fewer (16b)": ("16b", "does not hold"),
        "Beside the monolith (14b) and": ("14b", OPEN),
        "the modular shape (14c), two processes answered sooner": ("14c", OPEN),
        "whether by a tenth is open, as is 14a": ("14a", OPEN),
        "10a, 22c and 14c above": ("10a", OPEN),
        "22c and 14c above were open in one": ("22c", OPEN),
    },
    "docs/claims.md": {
        "two backends make": ("16a", "holds"),
        "times as many: fewer (16a, 16b)": ("16b", "does not hold"),
        "within the margin of a tenth (7)": ("7", "no difference"),
        "cannot be told from the two runs (14c)": ("14c", OPEN),
        "if that is enabled, which it has to poll (24)": ("24", "holds"),
        "the article's page has one turn, not two (21)": ("21", "does not hold"),
    },
}
# A claim whose interval lies on this side of 1, whatever the verdict says about a margin.
MORE, FEWER = ("2",), ("14b", "14c", "16b")


def test_readme_quotes_both_runs() -> None:
    for run in RUNS:
        assert tables.interval_text(run["1c"]) in README


def test_more_is_more_and_fewer_is_fewer_in_both_runs() -> None:
    for run in RUNS:
        assert all(run[number]["low"] > 1 for number in MORE)
        assert all(run[number]["high"] < 1 for number in FEWER)


def block_of(text: str, name: str) -> str:
    """Return what stands between the marks of a block."""
    return text.partition(f"<!-- {name} -->\n")[2].partition(f"\n<!-- end of {name} -->")[0].strip()


def runs_here() -> list[dict[str, Any]]:
    """Return the committed run, and the one in the folder if it is another: it was published."""
    here, _ = tables.read_run(ROOT / "results" / "claims")
    return [committed_results("claims"), here]


def test_readme_shows_the_published_claims() -> None:
    assert len(claims.PUBLISHED) == 10
    assert block_of(README, "verdicts") in map(publish.readme_block, runs_here())
    for number in claims.PUBLISHED:
        assert f"| {number} " in README


@pytest.mark.parametrize(
    ("path", "sentence", "number", "verdict"),
    [
        (path, sentence, *of_claim)
        for path, sentences in SAID.items()
        for sentence, of_claim in sentences.items()
    ],
)
def test_sentence_says_no_more_than_its_verdict(
    path: str, sentence: str, number: str, verdict: str
) -> None:
    assert sentence in " ".join((ROOT / path).read_text(encoding="utf-8").split())
    verdicts = {run[number]["verdict"] for run in RUNS}
    assert verdicts == {verdict} or verdict == OPEN in verdicts  # open is what one run left open


def test_page_of_the_claims_shows_the_committed_runs() -> None:
    page = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
    first, now = committed_results("claims-first"), committed_results("claims")
    for run in runs_here():
        blocks = {
            "verdicts": publish.claims_block(run),
            "runs": publish.runs_block(first, run),
            "margins": publish.resolved_block(run),
        }
        if blocks == {name: block_of(page, name) for name in blocks}:
            break
    else:
        pytest.fail("docs/claims.md is not what `chatbot-compare --report --publish .` writes")
    untold = tables.tabulate_untold(first, now)
    same = len(now["claims"]) - sum(untold.before != untold.now)
    last = (ROOT / "nbs" / "08_which_one.ipynb").read_text(encoding="utf-8")
    assert f"{same} of {len(now['claims'])} verdicts agree" in last


def test_page_of_the_engines_shows_the_committed_benchmark() -> None:
    page = (ROOT / "docs" / "engines.md").read_text(encoding="utf-8")
    here = engines_report.read(ROOT / "results" / "engines.json")
    for run in (committed_results("engines"), here):  # the latter if it was published again
        blocks = engines_report.blocks_of(run)
        if blocks == {name: block_of(page, name) for name in blocks}:
            break
    else:
        pytest.fail(
            "docs/engines.md is not what `chatbot-bench-engines --report --publish .` writes"
        )
    assert len(blocks) == 6
    assert page.count("<!-- end of ") == 6


def test_page_of_the_backend_shows_the_committed_load() -> None:
    page = (ROOT / "docs" / "backend.md").read_text(encoding="utf-8")
    results = committed_results("backend")
    layer = [bench_backend.Layer(**each) for each in results["rounds"]]
    for row in bench_backend.tabulate_layer(layer).to_markdown(index=False).splitlines():
        assert row in page
    crowd = results["crowd"]
    assert not [name for name in crowd["counts"] if re.match("reply: wrong|status 5|failed", name)]
    checked = sum(n for name, n in crowd["counts"].items() if name.startswith("reply"))
    said = " ".join(page.split())
    for sentence in (
        f"{crowd['clients']} clients for {crowd['seconds']} s",
        f"{checked} replies read, {crowd['counts']['reply: same as alone']} of them word for word",
        f"{crowd['counts']['status 429']} requests were refused with 429",
        f"{crowd['health p99, ms']} ms at p99 ({crowd['health p99 idle, ms']} ms without load)",
        f"{crowd['memory, second third, MB']} to {crowd['memory, last third, MB']} MB",
        results["command"],
    ):
        assert sentence in said
    assert crowd["replies in flight at the end"] == 0


def test_page_of_the_pages_shows_the_committed_rounds() -> None:
    page = (ROOT / "docs" / "pages.md").read_text(encoding="utf-8")
    results = committed_results("pages")
    rounds = [bench_pages.Round(**each) for each in results["rounds"]]
    table = bench_pages.tabulate(rounds)
    for row in table.to_markdown(index=False).splitlines():
        assert row in page
    for fact in (results["date"], results["command"]):
        assert fact in page
    reply, cpu = (ratios_of(rounds, name) for name in ("reply_s", "cpu_s"))
    assert min(cpu) > 1, "more processor time in every round"
    assert 1 / 1.03 < min(reply) < max(reply) < 1.03, "as long, within 3 %"
    assert min(ratios_of(rounds, "first_s")) < 1, "do not quite tell"


def ratios_of(rounds: list[bench_pages.Round], name: str) -> list[float]:
    """Return a measure's ratios, microservices to monolith, within each round."""
    monolith, microservices = (
        [getattr(each, name) for each in rounds if each.architecture == architecture]
        for architecture in ("monolith", "microservices")
    )
    return [after / before for before, after in zip(monolith, microservices, strict=True)]


@pytest.mark.parametrize(
    "target", sorted(set(re.findall(r"(?:`|^)make ([a-z-]+)", README, re.MULTILINE)))
)
def test_command_of_the_readme_exists(target: str) -> None:
    assert f"\n{target}:" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_file_of_the_readme_exists(path: str) -> None:
    assert (ROOT / path).exists()
