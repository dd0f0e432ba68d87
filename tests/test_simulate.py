"""A simulation that theory and conservation hold for, and whose sentences rest on rows."""

import io
import math
import re
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from committed import committed_results, read_committed

import chatbot_arch.measure.choice as choice
import chatbot_arch.measure.document as document
import chatbot_arch.measure.fitting as fitting
import chatbot_arch.measure.results as results
import chatbot_arch.measure.rounds as rounds
import chatbot_arch.measure.simulate as simulate
import chatbot_arch.measure.simulation as simulation
import chatbot_arch.measure.sizes as sizes
import chatbot_arch.measure.users as users
import chatbot_arch.measure.validate as validate
import chatbot_arch.service.admission as admission
import chatbot_arch.service.problems as problems

ROOT = Path(__file__).parent.parent
RUN = committed_results("claims")
FRAME = pd.read_csv(io.StringIO(read_committed("claims.csv")), dtype={"value": float})
SIMULATED = committed_results("simulation")
FITS = simulation.fits_of(RUN, FRAME)
REAL, FAKE = FITS["llamacpp"], FITS["fake"]
CROWD = sizes.Crowd()


def backends(**more: Any) -> simulate.Plan:
    """Return backends that programs ask."""
    return simulate.plan_of("microservices", pages=0, **more)


# What theory says.


def erlang_b(load: float, slots: int) -> float:
    """Return the share that is lost without a queue."""
    blocked = 1.0
    for number in range(1, slots + 1):
        blocked = load * blocked / (number + load * blocked)
    return blocked


@pytest.mark.parametrize(("people", "slots"), [(100, 2), (300, 4), (500, 8)])
def test_without_a_queue_a_share_is_refused_by_erlangs_formula(people: int, slots: int) -> None:
    reply_s = FAKE.known_s + (FAKE.tokens - 1) * FAKE.steps_s[1]
    come = simulate.People(people, think_s=120, seconds=8000)
    run = simulate.simulate(FAKE, backends(slots=slots, waiting=0), come, seed=3)
    assert run.refused > 100
    expected = erlang_b(run.asked / run.seconds * reply_s, slots)
    assert run.refused_share == pytest.approx(expected, rel=0.08)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.8])
def test_shared_processor_keeps_a_reply_as_long_as_theory_says(share: float) -> None:
    """An M/G/1 queue with processor sharing: the mean is that of one alone, by 1 - its load."""
    alone_s = 1.0
    steps = {batch: batch * alone_s / REAL.tokens for batch in fitting.BATCHES}  # T(b) constant
    alone = replace(REAL, steps_s=steps, hop_token_s=0.0, hop_s=0.0, known_s=0.0, new_s=0.0)
    alone = replace(alone, turn_s=0.0, kept_turn_s=0.0)
    work_s = alone_s * (alone.tokens - 1) / alone.tokens
    think_s = 1000.0
    people = round(share / work_s * think_s)
    come = simulate.People(people, think_s, turns=1, seconds=20_000, warm_s=1000)
    plan = backends(slots=500, waiting=math.inf)
    run = simulate.simulate(alone, plan, come, seed=5)
    load = run.asked / run.seconds * work_s
    assert np.mean(run.reply_s) == pytest.approx(work_s / (1 - load), rel=0.12)


@pytest.mark.parametrize("count", [5, 40, 100])
def test_people_are_thinking_or_waiting(count: int) -> None:
    """Little's law: people are as many as answers a second, times a wait and a thought."""
    come = simulate.People(count, think_s=30, seconds=4000)
    run = simulate.simulate(REAL, simulate.plan_of("monolith"), come, seed=2)
    rate = len(run.reply_s) / run.seconds
    assert rate * (np.mean(run.reply_s) + come.think_s) == pytest.approx(count, rel=0.05)


# Nobody is lost, and nothing is left to chance.


@pytest.mark.parametrize("shape", ["monolith", "modular", "microservices"])
@pytest.mark.parametrize("pages", [0, 1])
@pytest.mark.parametrize("count", [1, 16, 48, 49, 64, 200])
def test_of_a_burst_everybody_is_answered_or_refused(shape: str, pages: int, count: int) -> None:
    plan = simulate.plan_of(shape, pages=pages)
    run = simulate.simulate(REAL, plan, simulate.at_once(count))
    assert run.asked == count
    assert len(run.reply_s) == len(run.first_s) == count - run.refused
    limit = 16 + 32 if shape == "microservices" else count
    assert run.refused <= max(0, count - limit)
    if not pages:
        assert run.refused == max(0, count - limit)
    assert all(first <= whole for first, whole in zip(run.first_s, run.reply_s, strict=True))


def test_of_people_who_go_on_only_those_under_way_are_missing() -> None:
    come = simulate.People(300, think_s=5, seconds=200, warm_s=0)
    run = simulate.simulate(REAL, simulate.plan_of("microservices"), come)
    under_way = run.asked - len(run.reply_s) - run.refused
    assert 0 <= under_way <= 300
    assert run.refused > 0


def test_page_tries_again_when_its_backend_is_full() -> None:
    burst = simulate.at_once(64)
    of_programs = simulate.simulate(FAKE, simulate.plan_of("microservices", pages=0), burst)
    of_pages = simulate.simulate(FAKE, simulate.plan_of("microservices"), burst)
    assert (of_programs.refused, of_pages.refused) == (16, 0)
    assert of_pages.first(95) > of_programs.first(95)


def test_reply_on_a_page_ends_when_it_is_drawn() -> None:
    """With more to draw than a page process can, replies end when all of it is done."""
    plan = simulate.plan_of("monolith", slots=1000)
    run = simulate.simulate(FAKE, plan, simulate.at_once(200))
    assert max(run.reply_s) == pytest.approx(200 * FAKE.page_reply_s["monolith"])


def test_seed_makes_the_run() -> None:
    plan, come = simulate.plan_of("monolith"), simulate.People(30, seconds=200)
    first, again, other = (simulate.simulate(REAL, plan, come, seed) for seed in (1, 1, 2))
    assert first == again
    assert first.first_s != other.first_s


def test_work_is_what_was_asked_for() -> None:
    """The engine is busy for exactly what its replies need, if they come one by one."""
    moments = simulate.Burst((0.0, 100.0, 200.0))
    run = simulate.simulate(REAL, backends(), moments)
    step_s = simulate.steps_of(REAL, backends())[1]
    wrote_s = 3 * (REAL.tokens - 1) * step_s
    assert run.busy["writing"] * (200 + run.reply_s[-1]) == pytest.approx(wrote_s)
    assert run.busy["reading"] * (200 + run.reply_s[-1]) == pytest.approx(3 * REAL.known_s)


# More machines, more people.


@pytest.mark.parametrize("fit", FITS.values(), ids=FITS.keys())
def test_more_replicas_make_nothing_worse(fit: fitting.Fit) -> None:
    runs = [
        simulate.simulate(fit, backends(replicas=count, shared=False), simulate.at_once(64))
        for count in (1, 2, 3, 4, 8)
    ]
    for fewer, more in pairwise(runs):
        assert more.refused <= fewer.refused
        assert more.first(95) <= fewer.first(95)
        assert more.tokens_per_s >= fewer.tokens_per_s * 0.999


def test_replicas_that_share_cores_make_no_more() -> None:
    one, two = (
        simulate.simulate(REAL, backends(replicas=count), simulate.at_once(8)).tokens_per_s
        for count in (1, 2)
    )
    assert two < one
    waiting = [
        simulate.simulate(FAKE, backends(replicas=count, slots=4), simulate.at_once(8)).tokens_per_s
        for count in (1, 2)
    ]
    assert waiting[1] == pytest.approx(2 * waiting[0], rel=0.01)


def test_past_that_is_kept_saves_reading() -> None:
    come = simulate.People(60, seconds=300)
    again, kept = (
        simulate.simulate(REAL, simulate.plan_of("monolith", cached=cached), come)
        for cached in (16, math.inf)
    )
    assert kept.busy["reading"] < again.busy["reading"] / 2
    assert kept.first(95) < again.first(95)


def test_sticky_router_finds_the_past_and_one_in_turn_does_not() -> None:
    plan = backends(replicas=4, shared=False, cached=math.inf)
    come = simulate.People(160, seconds=300)
    sticky, in_turn = (
        simulate.simulate(REAL, replace(plan, router=router), come)
        for router in ("sticky", "in turn")
    )
    assert sticky.busy["reading"] < in_turn.busy["reading"]


# The fit.


def synthetic(known: dict[str, Any]) -> pd.DataFrame:
    """Return rows as a machine with known parameters would give them."""
    tokens, rows = 64, []

    def add(experiment: str, engine: str, shape: str, **values: float) -> None:
        for number in range(1, 9):
            for measure, value in values.items():
                rows.append((experiment, shape, engine, number, measure, value, 0.0, 1))

    for experiment, shape, batch, http, page in fitting.CASES:
        step = known["steps"][batch] + batch * (http * known["hop"] + known["pages"].get(page, 0))
        first = known["known"] if shape == "in process" else 0.3
        values = {"first_s": first, "reply_s": first + step * (tokens - 1)}
        add(experiment, "llamacpp", shape, **values)
    for way, first in (("in process", 0.02), ("kept connection", 0.023)):
        add("hop", "fake", way, first_s=first, reply_s=first + 0.02 * (tokens - 1))
    for shape in fitting.SHAPES:
        before = 0.023 if shape == "microservices" else 0.02
        add("one_person", "fake", shape, first_s=before + 0.01)
        add("many_people", "fake", shape, cpu_s=0.06)
        add("start_up", "llamacpp", shape, first_answer_s=4, memory_mb=700, backends_mb=600)
    add("open_pages", "fake", "monolith, one", memory_mb=90)
    add("open_pages", "fake", "monolith, many", memory_mb=90 + 7 * 0.1)
    for turn, first in (("turn 1", 0.05), ("turn 10", 0.14), ("turn 10, nothing reused", 1.4)):
        add("history", "llamacpp", turn, first_s=first)
    return pd.DataFrame(rows, columns=rounds.Row._fields)


def test_fit_finds_the_parameters_that_made_the_rows() -> None:
    known = {
        "steps": {1: 0.006, 4: 0.015, 8: 0.018},
        "hop": 0.0005,
        "pages": {"monolith": 0.0012, "modular": 0.001, "microservices": 0.0015},
        "known": 0.007,
    }
    found = fitting.fit(synthetic(known), "llamacpp", 64, 2)
    assert found.steps_s == pytest.approx(known["steps"], rel=1e-4)
    assert found.hop_token_s == pytest.approx(known["hop"], rel=1e-3)
    assert found.page_token_s == pytest.approx(known["pages"], rel=1e-3)
    assert found.page_first_s == pytest.approx(dict.fromkeys(fitting.SHAPES, 0.01))
    assert (found.known_s, found.hop_s) == pytest.approx((0.007, 0.003))
    assert (found.turn_s, found.kept_turn_s) == pytest.approx((0.15, 0.01))
    assert (found.page_mb, found.backend_mb) == pytest.approx((0.1, 600))


def test_fit_uses_no_row_that_it_is_compared_with() -> None:
    whole = [case for case in validate.HELD_OUT if "tokens_per_s" in case.measures]
    held_out = {(case.experiment, case.shape) for case in whole}
    rows = zip(FRAME.experiment, FRAME["shape"], strict=True)
    less = FRAME[[row not in held_out for row in rows]]
    assert len(less) < len(FRAME)
    for engine, fit in FITS.items():
        assert fitting.fit(less, engine, fit.tokens, fit.cores) == fit


@pytest.mark.parametrize("experiment", sorted({name for name, _ in fitting.CLAIM_OF}))
def test_fit_without_an_experiment_names_it(experiment: str) -> None:
    less = FRAME[FRAME.experiment != experiment]
    with pytest.raises(results.MeasureError, match=f"{experiment}.*compare-full"):
        fitting.fit(less, "llamacpp", 64, 2)


def test_fit_of_a_quick_run_is_an_error_in_words() -> None:
    with pytest.raises(results.MeasureError, match="make compare-full"):
        fitting.fit(FRAME[FRAME["round"] <= 5], "llamacpp", 64, 2)


def test_first_words_of_four_and_eight_people_are_not_fitted() -> None:
    """Only the seconds after a first word are: both may come later, and the fit is the same."""
    frame = FRAME.copy()
    chosen = (frame.experiment == "many_people") & frame.measure.isin(["first_s", "reply_s"])
    frame.loc[chosen, "value"] += 1.0
    for engine, fit in FITS.items():
        assert fitting.fit(frame, engine, fit.tokens, fit.cores).values() == fit.values()


# What is compared.


def test_refusals_of_backend_and_page_are_told_from_failures() -> None:
    queue = admission.Queue(1, 0)
    queue.join()
    with pytest.raises(problems.FullError) as refused:
        queue.join()
    assert validate.is_refusal(users.PageError(str(refused.value)))
    assert validate.is_refusal(users.PageError("http://here/ answered with status 429."))
    assert not validate.is_refusal(users.PageError("http://here/ answered with status 500."))


def test_committed_simulation_is_of_the_committed_run() -> None:
    assert simulation.fit_of(SIMULATED, FRAME) == REAL
    again = simulation.compare(FITS, FRAME, SIMULATED["runs"])
    assert again == SIMULATED["cases"]


def test_cases_cover_what_was_promised() -> None:
    measured = {(each["engine"], each["case"]) for each in SIMULATED["cases"]}
    for engine in simulation.ENGINES:
        names = {case.name for case in validate.cases_of(engine)}
        assert {name for of, name in measured if of == engine} >= names
        assert any("64 at once" in name for name in names)
        assert any("a burst" in name for name in names)
    assert {("llamacpp", case.name) for case in validate.HELD_OUT} <= measured


def test_error_leaves_out_what_was_fitted() -> None:
    one = {"engine": "llamacpp", "measure": "tokens_per_s", "error": 0.1, "case": "some"}
    control = one | {"case": validate.CONTROL, "error": 9.0}
    told = simulation.describe_error([one, control], simulation.RATE)
    assert "1 measured cases" in told
    assert "10% at most" in told


# Sizes.


@pytest.fixture(scope="module")
def curves() -> dict[sizes.Layout, list[sizes.Point]]:
    """Return the committed curves."""
    return dict(map(sizes.from_record, SIMULATED["curves"]))


def test_sizes_have_all_shapes_and_grow(curves: dict[sizes.Layout, list[sizes.Point]]) -> None:
    rows = pd.DataFrame(simulation.size_rows(SIMULATED, REAL))
    assert len(rows) == len(sizes.SIZES) * len(sizes.LAYOUTS) == len(sizes.SIZES) * len(curves)
    assert not rows.isna().any(axis=None)
    for _, of_layout in rows.groupby(["shape", "keeps"]):
        assert of_layout.machines.is_monotonic_increasing
        assert (of_layout.first_s <= CROWD.first_s).all()
        assert of_layout.usd.iloc[-1] <= of_layout.usd.iloc[0]  # a last cell is not half empty


def test_kept_past_needs_fewer_machines_with_more_memory() -> None:
    rows = pd.DataFrame(simulation.size_rows(SIMULATED, REAL)).query("people == 10_000_000")
    for _, of_shape in rows.groupby("shape"):
        again, kept = (of_shape[of_shape.keeps == keeps].iloc[0] for keeps in (False, True))
        assert kept.machines < again.machines
        assert kept.memory_gb / kept.machines > again.memory_gb / again.machines


def test_knobs_of_a_size_change_it(
    curves: dict[sizes.Layout, list[sizes.Point]], monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, points = next(iter(curves.items()))
    before = sizes.size_of(REAL, layout, points, CROWD, 100_000)
    busier = sizes.size_of(REAL, layout, points, replace(CROWD, online=0.2), 100_000)
    assert busier["machines"] == pytest.approx(2 * before["machines"], rel=0.02)
    dearer = [replace(each, usd_an_hour=2 * each.usd_an_hour) for each in sizes.MACHINES]
    monkeypatch.setattr(sizes, "MACHINES", dearer)
    twice = sizes.size_of(REAL, layout, points, CROWD, 100_000)
    assert twice["usd"] == pytest.approx(2 * before["usd"])
    never = sizes.size_of(REAL, layout, points, replace(CROWD, first_s=0), 100_000)
    assert math.isnan(never["machines"])


def test_conversations_that_fit_no_machine_have_no_price() -> None:
    assert sizes.machine_for(1e9) is None
    layout = sizes.Layout("monolith", keeps=True)
    point = sizes.Point(1_000_000, 0.1, 0.1, 0.1, 0.0, {"writing": 1.0})
    assert math.isnan(sizes.size_of(REAL, layout, [point], CROWD, 10_000_000)["usd"])


# The sentences.

MEASURED = choice.to_measured(RUN, FRAME, SIMULATED)
KNOBS = choice.knobs_of(MEASURED)


def with_rows(frame: pd.DataFrame) -> choice.Measured:
    return replace(MEASURED, frame=frame, judged={})


OUTSIDE = [
    ("First word", {"people": 64}),
    ("First word", {"people": 16, "cores": 4}),
    ("Whole reply", {"tokens": 512}),
    ("Whole reply", {"people": 8, "tokens": 16}),
    ("Whole reply", {"people": 64, "cores": 16}),
]


def say(measured: choice.Measured, topic: str, values: dict[str, Any]) -> choice.Sentence:
    """Return what is said about a topic in a case."""
    return choice.answer(measured, choice.start_of(KNOBS) | values)[topic]


@pytest.mark.parametrize(("topic", "values"), OUTSIDE)
def test_outside_of_what_was_measured_a_sentence_is_marked(
    topic: str, values: dict[str, Any]
) -> None:
    said = say(MEASURED, topic, values)
    assert said.side == "simulated"
    assert said.text.startswith(choice.SIMULATED)
    measures = simulation.FIRST if topic == "First word" else simulation.RATE
    assert simulation.describe_error(SIMULATED["cases"], measures) in said.text
    without = replace(MEASURED, simulated=None, judged={})
    assert say(without, topic, values).side == "untold"


def test_every_sentence_with_a_simulation_is_as_without_or_marked() -> None:
    without = replace(MEASURED, simulated=None, judged={})
    marked = 0
    for topic in choice.TOPICS:
        for values in choice.positions(topic, KNOBS):
            said, before = (topic.say(each, **values) for each in (MEASURED, without))
            if said != before:
                marked += 1
                assert before.side == "untold"
                assert said.side == "simulated"
                assert said.text.startswith(choice.SIMULATED)
                assert said.text.endswith(".")
            else:
                assert not said.text.startswith(choice.SIMULATED)
    assert marked > 100


def test_one_core_cannot_be_told_by_the_simulation_either() -> None:
    assert say(MEASURED, "First word", {"cores": 1}).side == "untold"


@pytest.mark.parametrize("number", sorted(REAL.rests_on))
def test_deleted_rows_withdraw_what_was_simulated(number: str) -> None:
    [(experiment, engine)] = [key for key, name in fitting.CLAIM_OF.items() if name == number]
    rows = FRAME[(FRAME.experiment == experiment) & (FRAME.engine == engine)]
    less = with_rows(FRAME.drop(index=rows.index))
    said = say(less, "First word", {"people": 64})
    assert said.side == "untold"
    assert choice.UNTOLD in said.text


def test_other_rows_than_those_fitted_withdraw_it_too() -> None:
    frame = FRAME.copy()
    chosen = (frame.experiment == "hop") & (frame.engine == "llamacpp")
    frame.loc[chosen & (frame.measure == "reply_s"), "value"] *= 1.2
    assert say(with_rows(frame), "First word", {"people": 64}).side == "untold"


def test_conclusion_names_what_is_only_simulated() -> None:
    said = choice.answer(MEASURED, choice.start_of(KNOBS) | {"people": 64})
    assert "Only simulated: first word, whole reply." in choice.conclude(said)


def test_refusals_are_told() -> None:
    """A page gives up when its backend has been full for long."""
    text = say(MEASURED, "Whole reply", {"people": 64, "tokens": 512}).text
    assert re.search(r"where [1-9]\d? of 64 are refused", text)
    assert "refused" not in say(MEASURED, "First word", {"people": 16}).text


def test_report_shows_the_simulation_as_such() -> None:
    run = RUN | {"claims": RUN["claims"][:1]}
    text = document.render(run, FRAME, SIMULATED)
    part = re.search(r'(?s)id="beyond">.*?<h2', text)
    assert part
    assert "simulated, not measured" in part[0]
    assert "10,000,000" in part[0]
    assert sizes.PRICED in part[0]
    assert part[0].count("<svg") == len(sizes.SIZES)
    assert 'id="beyond"' not in document.render(run, FRAME)


def test_report_of_other_rows_shows_no_simulation() -> None:
    assert document.describe_beyond(MEASURED)
    assert document.describe_beyond(with_rows(FRAME.assign(value=FRAME.value * 1.1))) is None
    without = simulation.show_sizes(SIMULATED, None, 1_000)
    assert isinstance(without, str)
    assert "make simulate" in without


# The texts.


def test_page_of_the_simulation_shows_what_was_committed() -> None:
    page = (ROOT / "docs" / "simulation.md").read_text(encoding="utf-8")
    assert simulation.cases_block(SIMULATED) in page
    assert simulation.sizes_block(SIMULATED, REAL) in page


def test_sentences_about_the_error_are_those_of_the_cases() -> None:
    text = " ".join((ROOT / "nbs" / "08_which_one.ipynb").read_text(encoding="utf-8").split())
    first, rate = (
        re.search(
            r"off by (\d+)% in the middle and (\d+)%",
            simulation.describe_error(SIMULATED["cases"], measures),
        )
        for measures in (simulation.FIRST, simulation.RATE)
    )
    assert first
    assert rate
    assert (
        f"the first word was off by {first[1]} % in the middle, {first[2]} % at most, "
        f"tokens a second by {rate[1]} % and {rate[2]} %." in text
    )


# The command.


def test_command_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(results.MeasureError, match="make compare"):
        simulation.run(tmp_path, (), 1, True, None)


def test_command_refuses_no_rounds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    command = ["chatbot-simulate", "--rounds", "0", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match="--rounds must be at least 1"):
        simulation.main()
