"""The rule by which claims are judged, and how rows become verdicts."""

import io
import json
import math
import os
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import pytest
from committed import ROOT, committed_results, read_committed

import chatbot_arch.measure.claims as claims
import chatbot_arch.measure.evidence as evidence
import chatbot_arch.measure.experiments as experiments
import chatbot_arch.measure.load as load
import chatbot_arch.measure.publish as publish
import chatbot_arch.measure.report as report
import chatbot_arch.measure.results as results
import chatbot_arch.measure.rounds as rounds
import chatbot_arch.measure.swaps as swaps
import chatbot_arch.measure.tables as tables
import chatbot_arch.measure.users as users
import chatbot_arch.measure.verdicts as verdicts

HOLDS, FAILS = verdicts.HOLDS, verdicts.FAILS
NO_DIFFERENCE, UNTOLD = verdicts.NO_DIFFERENCE, verdicts.UNTOLD


@pytest.mark.parametrize(
    ("kind", "low", "high", "word"),
    [
        ("more", 1.11, 1.2, HOLDS),
        ("more", 1.1, 1.2, UNTOLD),  # the margin itself is not beyond the margin
        ("more", 0.95, 1.09, NO_DIFFERENCE),
        ("more", 0.95, 1.1, UNTOLD),
        ("more", 1 / 1.1, 1.05, FAILS),  # not above, though perhaps less
        ("more", 0.5, 0.6, FAILS),
        ("more", 0.5, 1.5, UNTOLD),
        ("less", 0.5, 0.6, HOLDS),
        ("less", 0.95, 1.05, NO_DIFFERENCE),
        ("less", 1.2, 1.3, FAILS),
        ("less", 0.8, 1.3, UNTOLD),
        ("same", 0.95, 1.05, HOLDS),
        ("same", 1.0, 1.0, HOLDS),
        ("same", 0.95, 1.1, UNTOLD),
        ("same", 1.11, 1.2, FAILS),
        ("same", 0.5, 0.6, FAILS),
    ],
)
def test_interval_is_judged_by_kind_and_margin(
    kind: verdicts.Kind, low: float, high: float, word: str
) -> None:
    assert verdicts.judge_interval(kind, 1.1, low, high) == word


@pytest.mark.parametrize(
    ("n", "first", "last", "level"),
    [(6, 1, 6, 0.969), (8, 1, 8, 0.992), (10, 2, 9, 0.979), (12, 3, 10, 0.961)],
)
def test_interval_comes_from_the_order_and_tells_its_level(
    n: int, first: int, last: int, level: float
) -> None:
    interval = verdicts.interval_of([float(number) for number in range(n, 0, -1)])
    assert (interval.low, interval.high, interval.n) == (first, last, n)
    assert interval.level == pytest.approx(level, abs=0.001)


def test_ties_keep_the_interval() -> None:
    interval = verdicts.interval_of([1.2] * 5 + [1.3])
    assert (interval.low, interval.median, interval.high) == (1.2, 1.2, 1.3)
    assert verdicts.judge("more", 1.1, interval).word == HOLDS


@pytest.mark.parametrize(
    "ratios",
    [[], [2.0] * 5, [2.0] * 5 + [math.nan], [2.0] * 5 + [math.inf], [2.0] * 11 + [0.0]],
    ids=["none", "five", "nan", "zero-denominator", "zero"],
)
@pytest.mark.parametrize("kind", ["more", "less", "same"])
def test_ratios_without_an_interval_cannot_be_told(
    ratios: list[float], kind: verdicts.Kind
) -> None:
    assert verdicts.judge(kind, 1.1, verdicts.interval_of(ratios)).word == UNTOLD


def test_margin_below_what_the_run_resolves_cannot_be_told() -> None:
    clear = verdicts.interval_of([2.0] * 6)
    assert verdicts.judge("more", 1.1, clear, resolved=1.1).word == HOLDS
    assert verdicts.judge("more", 1.1, clear, resolved=1.11).word == UNTOLD


def test_shape_against_itself_passes_unless_the_interval_is_beyond_the_margin() -> None:
    assert verdicts.passes_itself(verdicts.interval_of([0.8, 0.9, 1.0, 1.1, 1.2, 1.3]), 1.1)
    assert not verdicts.passes_itself(verdicts.interval_of([1.2] * 6), 1.1)
    assert not verdicts.passes_itself(verdicts.interval_of([0.8] * 6), 1.1)


@pytest.mark.parametrize(
    ("truths", "word"),
    [([True] * 2, HOLDS), ([False] * 2, FAILS), ([True, False], UNTOLD), ([True], UNTOLD)],
)
def test_count_must_be_the_same_in_every_round(truths: list[bool], word: str) -> None:
    assert verdicts.judge_count(truths).word == word


def rows_of(claim: claims.Claim, *pairs: tuple[float, float]) -> list[rounds.Row]:
    """Return the rows of a claim's two shapes."""
    name = claim.experiment.__name__
    return [
        rounds.Row(name, shape, claim.engine, number, claim.measure, value, 0.0, 1)
        for number, pair in enumerate(pairs, 1)
        for shape, value in zip(claim.shapes, pair, strict=True)
    ]


def keep(folder: Path, claim: claims.Claim, rows: list[rounds.Row]) -> evidence.Kept:
    kept = evidence.Kept(folder / "part", "test")
    kept.add(f"{claim.experiment.__name__}, {claim.engine}", 1.0, rows)
    return kept


# Made-up pairs, about as large as what a fault makes of them; the recorded ones are in results/.
SLOW_HOP = [(0.33, 0.38), (0.33, 0.39), (0.34, 0.39), (0.33, 0.38), (0.33, 0.38), (0.33, 0.39)]
GOOD_HOP = [(0.333, 0.337), (0.334, 0.338), (0.333, 0.336), (0.334, 0.339), (0.333, 0.337)]
BLOCKED = [(1.6, 1.3), (1.62, 1.4), (1.61, 1.3), (1.6, 1.35), (1.64, 1.3), (1.6, 1.4)]
LEAK = [
    (310.0, 470.0),
    (312.0, 630.0),
    (470.0, 640.0),
    (632.0, 800.0),
    (640.0, 960.0),
    (800.0, 990.0),
]

KEPT_BY_EACH = [
    (100.0, 260.0),
    (260.0, 420.0),
    (420.0, 580.0),
    (580.0, 740.0),
    (740.0, 900.0),
    (900.0, 1060.0),
]


@pytest.mark.parametrize(
    ("number", "pairs", "word"),
    [
        ("1", SLOW_HOP, HOLDS),
        ("1", [*GOOD_HOP, (0.333, 0.338)], NO_DIFFERENCE),
        ("9", [(0.01, 1.3), (0.02, 1.4)], HOLDS),
        ("9", BLOCKED, FAILS),
        ("6", LEAK, FAILS),
        ("6b", KEPT_BY_EACH, FAILS),
        ("24", [(1, 1), (1, 1)], HOLDS),
        ("24", [(1, 0), (1, 0)], FAILS),
        ("12a", [(0, 1), (0, 1)], HOLDS),
        ("12a", [(0, 0), (0, 0)], FAILS),
        ("12a", [(0, 1), (0, 0)], UNTOLD),
        ("15", [(1, 0), (1, 0)], HOLDS),
        ("15", [(1, 1), (1, 1)], FAILS),
        ("21", [(2, 1), (2, 1)], FAILS),
        ("21", [(1, 1), (1, 1)], FAILS),
        ("21b", [(2, 1), (2, 1)], HOLDS),
        ("21b", [(1, 1), (1, 1)], FAILS),
        ("19b", [(1, 1), (1, 1)], FAILS),
        ("5", [(0.25, 1), (0.25, 1)], HOLDS),
    ],
)
def test_rows_get_their_verdict(
    tmp_path: Path, number: str, pairs: list[tuple[float, float]], word: str
) -> None:
    [claim] = claims.find_claims([number])
    [judged] = evidence.judge_all(keep(tmp_path, claim, rows_of(claim, *pairs)), [claim], False)
    assert judged.verdict == word


def test_noise_of_the_first_shape_decides_what_can_be_told(tmp_path: Path) -> None:
    [claim] = claims.find_claims(["1a"])
    rows = rows_of(claim, *[(1.0, 3.0)] * 6)
    for number, value in enumerate((0.4, 1.0, 1.1, 1.2, 0.9, 1.0), 1):
        again = experiments.AGAIN + claim.shapes[0]
        rows.append(rounds.Row("one_person", again, "fake", number, "first_s", value, 0.0, 1))
    [judged] = evidence.judge_all(keep(tmp_path, claim, rows), [claim], False)
    assert (judged.verdict, judged.resolved) == (UNTOLD, 2.5)


def test_count_with_a_missing_value_cannot_be_told(tmp_path: Path) -> None:
    [claim] = claims.find_claims(["12a"])
    rows = [row for row in rows_of(claim, (0, 1), (0, 1)) if row.shape == "monolith"]
    [judged] = evidence.judge_all(keep(tmp_path, claim, rows), [claim], False)
    assert judged.verdict == UNTOLD


def test_shapes_with_other_replies_cannot_be_compared(tmp_path: Path) -> None:
    [claim] = claims.find_claims(["1"])
    rows = rows_of(claim, *SLOW_HOP)
    for lengths, word in (((300, 310), HOLDS), ((300, 170), UNTOLD)):
        counted = rows_of(replace(claim, measure="characters"), *[lengths] * 6)
        [judged] = evidence.judge_all(keep(tmp_path, claim, rows + counted), [claim], False)
        assert judged.verdict == word
    assert judged.why == "the replies differ: 300 and 170 characters"


def test_ways_to_hand_over_a_reply_follow_the_settings() -> None:
    for pace, words in (("0.001", 3), ("0.002", 5)):
        told = {"CHATBOT_ENGINE": "fake", "CHATBOT_FAKE_TOKEN_S": pace}
        question = "/echo " + " ".join(["word"] * words)
        with patch.dict(os.environ, told):
            answerer = load.open_answerer("in process")
            assert answerer is load.open_answerer("in process")
        seen = load.hand_over("in process", told, question, 1)
        assert seen["characters"] == 5 * words - 1
        assert answerer.loading.choice.fake_token_s == float(pace)
        answerer.close()
    load._answerers.clear()


def test_quick_form_names_what_it_leaves_out(tmp_path: Path) -> None:
    [claim] = claims.find_claims(["14a"])
    [judged] = evidence.judge_all(evidence.Kept(tmp_path / "part", "test"), [claim], quick=True)
    assert judged.verdict == evidence.LEFT_OUT


def one_row(bench: object, engine: str, scale: experiments.Scale) -> experiments.Rows:
    yield [rounds.Row("one_row", "a", engine, 1, "value", 1.0, 0.0, 1)]


def broken(bench: object, engine: str, scale: experiments.Scale) -> experiments.Rows:
    yield [rounds.Row("broken", "a", engine, 1, "value", 1.0, 0.0, 1)]
    raise users.PageError("The page closed the connection.")


def test_interrupted_run_goes_on_and_failed_steps_are_tried_again(tmp_path: Path) -> None:
    steps = [evidence.Step(each, "fake", (), 1.0) for each in (one_row, broken)]
    kept = evidence.Kept(tmp_path / "part", "same")
    evidence.run(steps, experiments.Scale(), {}, kept)
    assert kept.steps["broken, fake"]["problem"] == "The page closed the connection."
    with (tmp_path / "part").open("a") as file:
        file.write('{"name": "cut off in the')  # as a killed process leaves it
    evidence.run(steps[:1], experiments.Scale(), {}, evidence.Kept(tmp_path / "part", "same"))
    again = evidence.Kept(tmp_path / "part", "same")
    again.add("another, fake", 1.0, [])
    assert list(evidence.Kept(tmp_path / "part", "same").steps) == [
        "one_row, fake",
        "another, fake",
    ]
    assert len(evidence.to_frame(again.rows())) == 1
    assert not evidence.Kept(tmp_path / "part", "another").steps


def test_report_can_be_traced_to_its_rows(tmp_path: Path) -> None:
    [claim] = claims.find_claims(["1"])
    kept = keep(tmp_path, claim, rows_of(claim, *SLOW_HOP))
    records = tables.to_records(kept, [claim], quick=False)
    results.write_json({"claims": records}, tmp_path / "claims.json")
    evidence.to_frame(kept.rows()).to_csv(tmp_path / "claims.csv", index=False)
    [record] = json.loads((tmp_path / "claims.json").read_text())["claims"]
    rows = pd.read_csv(tmp_path / "claims.csv").query(record["rows"])
    assert (len(rows), set(rows.unit)) == (12, {"s"})
    assert record["verdict"] == HOLDS
    assert record["rule"]["margin"] == claim.margin
    traced = report.trace("1", tmp_path)
    assert "0.39" in traced
    with pytest.raises(results.MeasureError, match="no claim"):
        report.trace("99", tmp_path)


def test_run_resumes_only_where_code_machine_and_form_are_the_same(tmp_path: Path) -> None:
    stamps = {evidence.stamp("quick"), evidence.stamp("full"), evidence.stamp("quick")}
    assert len(stamps) == 2
    kept = evidence.Kept(tmp_path / "part", evidence.stamp("full"))
    kept.add("one, fake", 1.0, [], dtypes={"llamacpp": "Q8_0"})
    again = evidence.Kept(tmp_path / "part", evidence.stamp("full"))
    assert report.describe_run(again, "full")["dtypes"] == {"llamacpp": "Q8_0"}
    assert not evidence.Kept(tmp_path / "part", evidence.stamp("quick")).steps
    other = tmp_path / "service.py"  # beside the package, of a replaced part
    other.write_text("changed")
    with patch.object(swaps, "list_sources", lambda: [other]):
        assert evidence.stamp("full") not in stamps


def test_two_runs_say_which_verdicts_differ() -> None:
    about = {"claim": "A sentence", "ratio": 1.05, "low": 1.0, "high": 1.2}
    same, now = about | {"number": "1", "verdict": HOLDS}, about | {"number": "2", "verdict": FAILS}
    untold = now | {"verdict": UNTOLD, "why": "0.9 to 1.2, margin 1.1"}
    before = {"date": "yesterday", "claims": [same, untold]}
    again = {"date": "today", "claims": [same, now]}
    assert "2 of 2" in tables.tell_changes(again, again)
    told = tables.tell_changes(before, {"claims": [same, now, now | {"number": "3"}]})
    assert told.startswith("1 of 2 verdicts are as in the run before, of yesterday; not so: ")
    assert told.endswith(f": 2 ({UNTOLD}, now {FAILS}).")
    [row] = tables.tabulate_untold(before, {"claims": [same, now]}).to_dict("records")
    assert (row["before"], row["now"]) == (UNTOLD, FAILS)
    assert row["why not told"] == untold["why"]
    assert row["its ratio"] == row["ratio now"] == "1.05 (1.00 to 1.20)"


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("claims", claims.CLAIMS),
        ("claims-first", claims.CLAIMS),
        ("clusters", claims.CLUSTER),
        ("clusters-first", claims.CLUSTER),
        ("swaps", claims.SWAPS),
        ("swaps-first", claims.SWAPS),
    ],
)
def test_committed_verdicts_follow_from_the_committed_rows(
    name: str, chosen: tuple[claims.Claim, ...]
) -> None:
    content = committed_results(name)
    frame = pd.read_csv(io.StringIO(read_committed(f"{name}.csv")))
    of = {record["number"]: record for record in content["claims"]}
    assert list(of) == [claim.number for claim in chosen]
    assert content["form"] == "full"
    for claim in chosen:
        record = of[claim.number]
        judged = tables.to_record(claim, evidence.judge(frame, claim))
        assert judged["verdict"] == record["verdict"]
        assert judged["rule"] == record["rule"], "the rule stands before the numbers"
        assert len(frame.query(record["rows"])) >= 2 * judged["n"] > 0
        assert record["passes"] in (True, None), "a shape differs from itself"


@pytest.mark.parametrize(("name", "minutes"), [("claims", 60), ("clusters", 10), ("swaps", 10)])
def test_two_committed_runs_are_apart_and_contradict_each_other_nowhere(
    name: str, minutes: int
) -> None:
    first, now = committed_results(f"{name}-first"), committed_results(name)
    for moment in ("began", "date"):
        apart = datetime.fromisoformat(now[moment]) - datetime.fromisoformat(first[moment])
        assert apart >= timedelta(minutes=minutes)
    untold = tables.tabulate_untold(first, now)
    assert untold[(untold.before != UNTOLD) & (untold.now != UNTOLD)].empty


def test_swaps_without_node_are_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(results.MeasureError, match="Install Node"):
        report.choose([], "swaps")


def test_page_on_clusters_says_what_both_runs_measured() -> None:
    page = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    later, back, lost, stays = [], [], set(), []
    for name in ("clusters-first", "clusters"):
        frame = pd.read_csv(io.StringIO(read_committed(f"{name}.csv")))
        first = frame[(frame.experiment == "ray_proxy") & (frame.measure == "first_s")]
        first = first.pivot(index="round", columns="shape", values="value")
        later.append(1000 * (first["Ray Serve, 1"] - first["uvicorn, 1"]).median())
        killed = frame[(frame.experiment == "ray_kill") & (frame["shape"] == "two replicas")]
        back += killed[killed.measure == "back_s"].value.tolist()
        lost |= set(killed[killed.measure == "failed"].value)
        of = {each["number"]: each for each in committed_results(name)["claims"]}
        stays.append(of["32"]["ratio"])
        rates = frame[(frame.engine == "llamacpp") & (frame.measure == "tokens_per_s")]
        rates = rates.groupby("shape").value.median()
        assert rates["3 replicas"] < rates["2 replicas"]
    assert f"{later[0]:.1f} and {later[1]:.1f} ms later" in page
    assert f"{min(back):.1f} to {max(back):.1f} s, nine tenths" in page
    assert lost == {4.0}
    assert f"in each of {len(back)} rounds" in page
    assert {f"{each:.1f} times as long" in page for each in stays} == {True}


def test_page_on_swaps_says_what_was_measured() -> None:
    text = (ROOT / "docs" / "swaps.md").read_text(encoding="utf-8")
    page, names = " ".join(text.split()), ("swaps-first", "swaps")
    frames = [pd.read_csv(io.StringIO(read_committed(f"{name}.csv"))) for name in names]
    for block in publish.swaps_blocks(frames).values():
        assert block in text
    size = frames[1][frames[1].measure == "lines_needed"].groupby("shape").value.first()
    assert size["deep-chat, microservices"] == size["BentoML, microservices"] == 0
    changed = f"{size['React, microservices']:.0f}"
    assert f"The page in React changed {changed}," in page
    assert f"the backend with its routes, {size['React, monolith']:.0f} lines" in page
    assert f"another page as well, {size['BentoML, monolith']:.0f}" in page
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"in React changed {changed} lines of the package, a BentoML service none" in readme
    for frame in frames:
        tests = frame[frame.experiment == "swap_contract"].groupby(["measure", "shape"]).value
        least, most = tests.min(), tests.max()
        assert f"{least['tests_passed', 'BentoML']:.0f} tests passed against the BentoML" in page
        assert least["tests_passed", "BentoML"] == most["tests_passed", "uvicorn"]
        assert most["tests_failed"].max() == 0


def test_written_lines_are_those_that_the_page_tells() -> None:
    page = " ".join((ROOT / "docs" / "swaps.md").read_text(encoding="utf-8").split())
    sources = [*(ROOT / "swaps/react/src").glob("*.tsx"), *(ROOT / "swaps/react/src").glob("*.ts")]
    own = [path for path in sources if path.name != "contract.d.ts"]
    script = sum(len(path.read_text().splitlines()) for path in own)
    sheet = len((ROOT / "swaps/react/src/style.css").read_text().splitlines())
    assert f"{script} are TypeScript, {sheet} a style sheet" in page


def test_plan_of_the_quick_form_is_within_eight_minutes_and_the_full_within_45() -> None:
    for quick, most_min in ((True, 8), (False, 45)):
        steps = evidence.plan(claims.find_claims(quick=quick), quick)
        assert all(step.name in evidence.SECONDS for step in steps)
        assert sum(step.seconds for step in steps) < most_min * 60
