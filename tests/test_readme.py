"""The README is short, and its numbers are those of results/."""

import json
import re
import statistics
import subprocess
from pathlib import Path

import pandas as pd
import pytest

import chatbot_arch.measure.bench_backend as bench_backend
import chatbot_arch.measure.bench_engines as bench_engines
import chatbot_arch.measure.bench_pages as bench_pages
import chatbot_arch.measure.compare as compare

ROOT = Path(__file__).parent.parent
ANSWERED = ("reply_s", "memory_mb", "first_answer_s")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def committed_results(name: str) -> dict:
    """Return the results of the last commit: measuring again writes others to the same place."""
    command = ["git", "show", f"HEAD:results/{name}.json"]
    shown = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return json.loads(shown.stdout)


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150
    told = re.sub(r"(?s)```.*?```", "", README)
    words = [line.split() for line in told.splitlines() if not line.startswith("|")]
    assert sum(map(len, words)) <= 900


def test_readme_shows_the_committed_results() -> None:
    results = committed_results("compare")
    visits = [compare.Visit(**visit) for visit in results["visits"]]
    for row in compare.summarize(visits).to_markdown().splitlines():
        assert row in README
    assert compare.compare_replies(visits) in README
    for fact in (results["date"], results["machine"]["processor"], results["command"]):
        assert fact in README


def test_answer_of_the_readme_says_no_more_than_the_rounds() -> None:
    visits = [compare.Visit(**visit) for visit in committed_results("compare")["visits"]]
    reply, memory, first = (ratios_by_round(visits, name) for name in ANSWERED)
    said = " ".join(README.split())
    assert len(reply) == 12
    assert "twelve rounds show no clear difference in reply time" in said
    assert sorted(reply)[2] < 1 < sorted(reply)[9], "the interval of twelve holds 1"
    assert min(memory) > 1
    assert f"{statistics.median(memory) - 1:.0%} more memory".replace("%", " %") in said
    assert max(first) < 1
    assert f"came {1 - statistics.median(first):.0%} sooner".replace("%", " %") in said


def test_last_notebook_quotes_the_committed_medians() -> None:
    text = (ROOT / "nbs" / "08_which_one.ipynb").read_text(encoding="utf-8")
    visits = [compare.Visit(**visit) for visit in committed_results("compare")["visits"]]
    first, reply = (
        1000 * (compare.values_of(visits, "microservices", name).median() - monolith.median())
        for name in ("first_word_s", "reply_s")
        for monolith in [compare.values_of(visits, "monolith", name)]
    )
    assert f"differ by {first:.0f} ms in the first word and {reply:.0f} ms in the reply" in text
    rounds = pd.DataFrame(committed_results("pages")["rounds"])
    cpu_s = rounds.groupby("architecture")["cpu_s"].median()
    more_s = cpu_s["microservices"] - cpu_s["monolith"]
    assert f"16 replies cost {more_s:.1f} s more processor time" in text


def ratios_by_round(visits: list[compare.Visit], name: str) -> list[float]:
    """Return a measure's ratios, microservices to monolith; a round's value is its median."""
    monolith, microservices = (
        [
            statistics.median(compare.values_of([visit], architecture, name))
            for visit in visits
            if visit.architecture == architecture
        ]
        for architecture in compare.ARCHITECTURES
    )
    return [after / before for before, after in zip(monolith, microservices, strict=True)]


def test_page_of_the_engines_shows_the_committed_benchmark() -> None:
    page = (ROOT / "docs" / "engines.md").read_text(encoding="utf-8")
    results = committed_results("engines")
    loads = [bench_engines.Load(**load) for load in results["loads"]]
    for row in bench_engines.tabulate(loads).to_markdown(index=False).splitlines():
        assert row in page
    ratios = {
        (row["contestant"], row["to"]): row["16 at once"].split()[0]
        for row in bench_engines.tabulate_ratios(loads).to_dict("records")
    }
    for ours, other in (
        (bench_engines.OUR_TRANSFORMERS, bench_engines.ARTICLE),
        (bench_engines.OUR_LLAMACPP, bench_engines.OUR_TRANSFORMERS),
    ):
        assert f"{ratios[ours, other]} times" in " ".join(page.split())
    for fact in (results["date"], results["machine"]["processor"], results["command"]):
        assert fact in page


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
