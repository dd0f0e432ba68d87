"""An answer for a case rests on rows: without them it changes, and outside of them it says so."""

import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
from committed import committed_results, read_committed

import chatbot_arch.measure.choice as choice
import chatbot_arch.measure.claims as claims
import chatbot_arch.measure.document as document

RUN = committed_results("claims")
FRAME = pd.read_csv(io.StringIO(read_committed("claims.csv")), dtype={"value": float})
MEASURED = choice.to_measured(RUN, FRAME)
KNOBS = choice.knobs_of(MEASURED)
NUMBERS = {claim.number for claim in claims.CLAIMS}


def changed(**values: Any) -> dict[str, Any]:
    """Return the case that the knobs begin with, with some other values."""
    return choice.start_of(KNOBS) | values


def with_rows(frame: pd.DataFrame) -> choice.Measured:
    return replace(MEASURED, frame=frame, judged={})


def sentences(measured: choice.Measured) -> Iterator[tuple[str, dict[str, Any], choice.Sentence]]:
    """Yield every sentence that the knobs lead to, with its topic and its values."""
    for topic in choice.TOPICS:
        for values in choice.positions(topic, KNOBS):
            yield topic.name, values, topic.say(measured, **values)


def rows_of(number: str) -> pd.DataFrame:
    """Return the rows of a claim's two shapes."""
    [claim] = claims.find_claims([number])
    found = FRAME.query("experiment == @claim.experiment.__name__ and engine == @claim.engine")
    return found[(found.measure == claim.measure) & found["shape"].isin(claim.shapes)]


def test_every_sentence_is_one_and_names_claims_that_exist() -> None:
    said = [sentence for _, _, sentence in sentences(MEASURED)]
    assert len(said) > 50
    for sentence in said:
        assert sentence.text.endswith(".")
        assert sentence.rests_on.keys() <= NUMBERS
        assert sentence.side in choice.HEADINGS
        assert (sentence.side == "untold") == (choice.UNTOLD in sentence.text), sentence


@pytest.mark.parametrize("topic", [topic.name for topic in choice.TOPICS])
def test_deleted_row_changes_or_withdraws_a_sentence(topic: str) -> None:
    tried = 0
    for name, values, sentence in sentences(MEASURED):
        if name != topic:
            continue
        for number in sentence.rests_on:
            row = rows_of(number).index[-1]
            less = with_rows(FRAME.drop(index=row))
            found = next(each for each in choice.TOPICS if each.name == topic)
            again = found.say(less, **values)
            assert again != sentence, (values, number)
            tried += 1
    assert tried


@pytest.mark.parametrize(
    ("experiment", "topics"),
    [
        ("start_up", {"Memory", "Releases of the page"}),
        ("one_person", {"First word", "Whole reply"}),
        ("replicas", {"A second backend"}),
        ("deploy", {"Releases of the page"}),
        ("size", {"Size"}),
    ],
)
def test_without_an_experiment_what_rests_on_it_is_withdrawn(
    experiment: str, topics: set[str]
) -> None:
    less = with_rows(FRAME[FRAME.experiment != experiment])
    said = choice.answer(less, changed())
    assert {name for name, each in said.items() if each.side == "untold"} >= topics
    for name in topics:
        assert "too few rows" in said[name].text


@pytest.mark.parametrize(
    ("topic", "values"),
    [
        ("First word", {"people": 64}),
        ("Whole reply", {"people": 64}),
        ("Whole reply", {"tokens": 512}),
        ("A second backend", {"cores": 16}),
    ],
)
def test_outside_of_what_was_measured_it_cannot_be_told(topic: str, values: dict[str, Any]) -> None:
    said = choice.answer(MEASURED, changed(**values))[topic]
    assert said.side == "untold"
    assert choice.UNTOLD in said.text
    assert not any(word in said.text for word in (" s ", "times"))


@pytest.mark.parametrize("measure", [choice.FIRST, choice.WHOLE])
def test_waits_meet_what_was_measured_and_lie_between(
    measure: tuple[str, tuple[str, str]],
) -> None:
    name, numbers = measure
    ends = []
    for people, number in zip((1, MEASURED.people), numbers, strict=True):
        seconds, used = choice.wait(MEASURED, people, measure)
        rows = rows_of(number)
        assert rows.measure.unique() == [name]
        medians = rows.groupby("shape").value.median()
        assert seconds == pytest.approx([medians[shape] for shape in choice.BOTH])
        assert used == {number: rows["round"].nunique()}
        ends.append(seconds)
    between, used = choice.wait(MEASURED, 4, measure)
    assert set(used) == set(numbers)
    straight = [(4 * one + 3 * many) / 7 for one, many in zip(*ends, strict=True)]
    assert between == pytest.approx(straight)


def scale(experiment: str, shape: str, factor: float) -> choice.Measured:
    """Return rows in which one shape of an experiment has other values."""
    frame = FRAME.copy()
    chosen = (frame.experiment == experiment) & (frame["shape"] == shape)
    chosen &= frame.measure != "characters"  # replies as long as before
    frame.loc[chosen, "value"] *= factor
    return with_rows(frame)


def test_slower_microservices_speak_for_the_monolith() -> None:
    slower = scale("one_person", "microservices", 3)
    said = choice.answer(slower, changed())
    assert said["First word"].side == "monolith"
    assert "a person notices that microservices are slower" in said["First word"].text


def test_backends_that_gain_speak_for_microservices() -> None:
    gained = choice.answer(scale("replicas", "2 backends", 3), changed())
    assert gained["A second backend"].side == "microservices"
    unclear = choice.answer(scale("replicas", "2 backends", 2.3), changed())["A second backend"]
    assert unclear.side == "untold"
    assert choice.UNTOLD in unclear.text


def test_memory_goes_by_what_the_processes_need() -> None:
    small, middle, large = (choice.memory(MEASURED, gb) for gb in (0.5, 0.75, 8))
    assert "no room for" in small.text
    assert middle.side == "monolith"
    assert "room for the monolith" in middle.text
    assert "three backends were not measured" in large.text


def test_each_knob_changes_what_is_said() -> None:
    for name, knob in KNOBS.items():
        said = [str(choice.answer(MEASURED, changed(**{name: each}))) for each in knob.positions]
        assert len(set(said)) > 1, name
        assert knob.start in knob.positions


def test_conclusion_names_what_speaks_for_a_split() -> None:
    alone = choice.answer(MEASURED, changed(a_week=0))
    assert choice.conclude(alone) == choice.ONE
    often = choice.answer(MEASURED, changed(a_week=5, what=choice.MODEL))
    assert "releases of the page, what breaks" in choice.conclude(often)


def test_page_looks_up_what_python_says() -> None:
    given = document.describe_choice(MEASURED)
    for topic, table in zip(choice.TOPICS, given["topics"], strict=True):
        positions = list(choice.positions(topic, KNOBS))
        assert len(positions) == len(table["answers"])
        last = topic.say(MEASURED, **positions[-1])
        assert table["answers"][-1]["text"] == last.text
