"""An answer for a case rests on rows: without them it changes, and outside of them it says so."""

import io
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
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


def rows_of(number: str, at: str = "") -> pd.DataFrame:
    """Return the rows of a claim's two shapes, `at` another number of people or tokens."""
    [claim] = claims.find_claims([number])
    found = FRAME.query("experiment == @claim.experiment.__name__ and engine == @claim.engine")
    shapes = [f"{shape}, {at}" if at else shape for shape in claim.shapes]
    return found[(found.measure == claim.measure) & found["shape"].isin(shapes)]


def rests_at(number: str, values: dict[str, Any]) -> list[str]:
    """Return at which other numbers of people or tokens a sentence uses a claim; "" is its own."""
    if number in (choice.FIRST[1], choice.WHOLE[1]):
        waits = choice.FIRST if number in choice.FIRST else choice.WHOLE
        near = choice.neighbors(choice.crowds(MEASURED, waits), values["people"])
        return ["" if each == MEASURED.people else f"{each} people" for each in near if each > 1]
    if number == choice.WHOLE[0] and values["people"] == 1:
        near = choice.neighbors(choice.lengths(MEASURED), values["tokens"])
        return ["" if each == MEASURED.tokens else f"{each} tokens" for each in near]
    return [""]


def test_every_sentence_is_one_and_names_claims_that_exist() -> None:
    said = [sentence for _, _, sentence in sentences(MEASURED)]
    assert len(said) > 300
    for sentence in said:
        assert sentence.text.endswith(".")
        assert sentence.rests_on.keys() <= NUMBERS
        assert (sentence.side == "untold") == (choice.UNTOLD in sentence.text.split(";")[-1])
        if re.search(r"\d (s|times|GB)\b", sentence.text):
            assert sentence.rests_on, sentence


@pytest.mark.parametrize("topic", choice.TOPICS, ids=lambda topic: topic.name)
def test_deleted_row_changes_or_withdraws_a_sentence(topic: choice.Topic) -> None:
    tried = 0
    for values in choice.positions(topic, KNOBS):
        sentence = topic.say(MEASURED, **values)
        used = ((number, at) for number in sentence.rests_on for at in rests_at(number, values))
        for number, at in used:
            for row in (rows_of(number, at).index[0], rows_of(number, at).index[-1]):
                less = topic.say(with_rows(FRAME.drop(index=row)), **values)
                assert less != sentence, (values, number, at)
                tried += 1
    assert tried


@pytest.mark.parametrize("topic", choice.TOPICS, ids=lambda topic: topic.name)
def test_without_a_claims_rows_the_text_is_another_and_says_no_more(topic: choice.Topic) -> None:
    for values in choice.positions(topic, KNOBS):
        sentence = topic.say(MEASURED, **values)
        for number in sentence.rests_on:
            gone = pd.concat([rows_of(number, at) for at in rests_at(number, values)]).index
            less = topic.say(with_rows(FRAME.drop(index=gone)), **values)
            assert less.text != sentence.text, (values, number)
            assert less.side in (sentence.side, "untold")


@pytest.mark.parametrize(
    ("experiment", "topics"),
    [
        ("start_up", {"Memory"}),
        ("one_person", {"First word", "Whole reply"}),
        ("replicas", {"A second backend"}),
        ("deploy", {"Releases of the page"}),
        ("crash", {"What breaks"}),
        ("size", {"Size"}),
    ],
)
def test_without_an_experiment_what_rests_on_it_is_withdrawn(
    experiment: str, topics: set[str]
) -> None:
    less = with_rows(FRAME[FRAME.experiment != experiment])
    said = choice.answer(less, changed(what=choice.MODEL))
    for name in topics:
        assert said[name].side == "untold"
        assert name.lower() in choice.conclude(said)


def test_release_without_its_seconds_still_says_what_restarts() -> None:
    less = with_rows(FRAME[FRAME.experiment != "start_up"])
    said = choice.answer(less, changed(a_week=5))["Releases of the page"]
    assert said.side == "microservices"
    assert "a week" not in said.text


@pytest.mark.parametrize(
    ("topics", "values"),
    [
        (("First word", "Whole reply"), {"people": 64}),
        (("Whole reply",), {"tokens": 512}),
        (("First word", "Whole reply", "A second backend"), {"cores": 16}),
    ],
)
def test_outside_of_what_was_measured_it_cannot_be_told(
    topics: tuple[str, ...], values: dict[str, Any]
) -> None:
    said = choice.answer(MEASURED, changed(**values))
    for topic in topics:
        assert said[topic].side == "untold"
        assert choice.UNTOLD in said[topic].text
        assert not re.search(r"\d s |times", said[topic].text)
    assert all(topic.lower() in choice.conclude(said) for topic in topics)


def seconds(sentence: choice.Sentence) -> list[float]:
    """Return the two waits that a sentence names."""
    found = re.search(r"after (\S+) s in the monolith and (\S+) s in microservices", sentence.text)
    assert found, sentence
    return [float(each) for each in found.groups()]


@pytest.mark.parametrize(("numbers", "at"), [(choice.FIRST, 3), (choice.WHOLE, 6)])
def test_waits_meet_what_was_measured_and_lie_between(numbers: tuple[str, str], at: int) -> None:
    points = choice.crowds(MEASURED, numbers)
    assert list(points) == [1, 2, 4, 8]
    for people, number in ((1, numbers[0]), (8, numbers[1])):
        medians = rows_of(number).groupby("shape").value.median()
        assert list(points[people].values.values()) == [medians[each] for each in choice.BOTH]
    low, high = choice.neighbors(points, at).values()
    say = choice.first_word if numbers == choice.FIRST else partial(choice.whole_reply, tokens=64)
    said = say(MEASURED, cores=2, people=at)
    assert f"interpolated between {at * 2 // 3} and {at * 4 // 3} people" in said.text
    assert said.rests_on == {numbers[1]: 12}
    assert said.side == "untold"
    middle = [(a + b) / 2 for a, b in zip(low.values.values(), high.values.values(), strict=True)]
    assert seconds(said) == pytest.approx(middle, rel=0.06)  # two digits


def test_shorter_reply_lies_between_two_lengths() -> None:
    ends = [seconds(choice.whole_reply(MEASURED, 2, 1, tokens)) for tokens in (16, 64)]
    said = choice.whole_reply(MEASURED, 2, 1, 32)
    assert "interpolated between 16 and 64 tokens" in said.text
    thirds = [(2 * few + most) / 3 for few, most in zip(*ends, strict=True)]
    assert seconds(said) == pytest.approx(thirds, rel=0.06)
    assert choice.whole_reply(MEASURED, 2, 1, 8).side == "untold"
    assert choice.whole_reply(MEASURED, 2, 8, 32).side == "untold"


def test_points_far_apart_are_not_joined() -> None:
    ends = with_rows(FRAME[~FRAME["shape"].str.endswith(" people")])
    assert "1 and 8 people at once on 2 cores were measured" in choice.first_word(ends, 2, 3).text
    points = choice.crowds(MEASURED, choice.FIRST)
    assert not choice.neighbors({1: points[1], 8: points[8]}, 4)
    assert not choice.neighbors(points, 16)


@pytest.mark.parametrize("label", ["monolith, 2 people", "microservices, 4 people"])
def test_deleted_row_of_a_point_withdraws_what_lies_beside_it(label: str) -> None:
    said = choice.first_word(MEASURED, 2, 3)
    rows = FRAME.query("shape == @label and engine == 'llamacpp' and measure == 'first_s'")
    less = with_rows(FRAME.drop(index=rows.index[0]))
    assert "interpolated" in said.text
    assert "too few rows" in choice.first_word(less, 2, 3).text
    assert choice.first_word(less, 2, 8) == choice.first_word(MEASURED, 2, 8)


def scale(experiment: str, shape: str, factor: float) -> choice.Measured:
    """Return rows in which one shape of an experiment has other values."""
    frame = FRAME.copy()
    chosen = (frame.experiment == experiment) & (frame["shape"] == shape)
    chosen &= frame.measure != "characters"  # replies as long as before
    frame.loc[chosen, "value"] *= factor
    return with_rows(frame)


@pytest.mark.parametrize(
    ("factor", "side", "text"),
    [
        (3, "monolith", "microservices take more than 2 times as long"),
        (1 / 4, "microservices", "the monolith takes more than 2 times as long"),
        (1, "either", "no difference of 2 times or more was found"),
    ],
)
def test_wait_speaks_for_the_faster_side(factor: float, side: str, text: str) -> None:
    said = choice.answer(scale("one_person", "microservices", factor), changed())["First word"]
    assert said.side == side
    assert text in said.text


def test_half_of_an_answer_is_untold() -> None:
    """Six rounds that say "not later" may still say that it comes sooner, or not."""
    judged = replace(MEASURED.judge("1b"), verdict="does not hold", low=0.4, high=1.5)
    assert choice.side_of(judged) == "untold"


def test_backends_that_gain_speak_for_microservices() -> None:
    gained = choice.answer(scale("replicas", "2 backends", 3), changed())
    assert gained["A second backend"].side == "microservices"
    unclear = choice.answer(scale("replicas", "2 backends", 2.3), changed())["A second backend"]
    assert unclear.side == "untold"


@pytest.mark.parametrize(
    ("shape", "memory_gb", "side", "than"),
    [
        ("", 0.5, "either", "less than each needed then."),
        ("", 0.75, "monolith", "more than the monolith needed then."),
        ("", 1, "either", "more than the monolith and microservices needed then."),
        ("", 8, "either", "more than the monolith, microservices and two backends needed then."),
        ("monolith", 0.8, "microservices", "more than microservices needed then."),
    ],
)
def test_memory_goes_by_what_the_processes_need(
    shape: str, memory_gb: float, side: str, than: str
) -> None:
    said = choice.memory(scale("start_up", shape, 1.2), memory_gb)
    assert said.side == side
    assert said.text.endswith(f" GB is {than}")


def test_claim_that_fails_is_told_as_that() -> None:
    frame = FRAME.copy()
    frame.loc[frame.measure == "model_restarts", "value"] = 1.0
    said = choice.answer(with_rows(frame), changed(what=choice.PAGE))
    for topic in ("Releases of the page", "What breaks"):
        assert said[topic].text == "Not so on this machine: claim 15 fails."
        assert said[topic].side == "either"


def test_each_knob_changes_what_is_said() -> None:
    for name, knob in KNOBS.items():
        said = [str(choice.answer(MEASURED, changed(**{name: each}))) for each in knob.positions]
        assert len(set(said)) > 1, name
        assert knob.start in knob.positions


def test_conclusion_names_what_speaks_for_a_split_and_what_is_untold() -> None:
    alone = choice.answer(MEASURED, changed(a_week=0))
    assert alone["Whole reply"].side == "untold"
    assert choice.conclude(alone).startswith("One process to begin with")
    assert choice.conclude(alone).endswith("Cannot be told here: whole reply.")
    known = {name: each for name, each in alone.items() if each.side != "untold"}
    assert choice.conclude(known) == choice.CONCLUSIONS["one"]
    often = choice.conclude(choice.answer(MEASURED, changed(a_week=5, what=choice.MODEL)))
    assert often.startswith("Microservices, if this matters to you: releases of the page, what br")
    assert often.endswith("Otherwise one process. Cannot be told here: whole reply.")


def test_page_looks_up_what_python_says() -> None:
    given = document.describe_choice(MEASURED)
    for topic, table in zip(choice.TOPICS, given["topics"], strict=True):
        said = [topic.say(MEASURED, **each) for each in choice.positions(topic, KNOBS)]
        assert [each["text"] for each in table["answers"]] == [each.text for each in said]
        assert [each["side"] for each in table["answers"]] == [each.side for each in said]
