"""What the benchmark of the backend counts as wrong, and how it then ends."""

import sys
from pathlib import Path

import pytest

import chatbot_arch.measure.bench_backend as bench_backend

ONE, OTHER = bench_backend.QUESTIONS[:2]
TRUTHS = {
    ONE: bench_backend.Truth("a cat sat down.", 7),
    OTHER: bench_backend.Truth("a king rode off.", 8),
}
LAYER = [
    bench_backend.Layer(way, 0.01, 100.0, 0.02, cpu_us)
    for way, cpu_us in (("direct", 20.0), ("HTTP", 120.0), ("direct", 30.0), ("HTTP", 180.0))
]


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (bench_backend.Truth("a cat sat down.", 7), "same as alone"),
        (bench_backend.Truth("a cat rode off.", 7), "wrong"),
        (bench_backend.Truth("a king rode off.", 7), "wrong"),
        (bench_backend.Truth("a cat", 7), "wrong"),
        (bench_backend.Truth("", 7), "wrong"),
        (bench_backend.Truth("a cat sat down.", 8), "wrong"),
    ],
    ids=["right", "mixed", "other", "cut", "empty", "prompt"],
)
def test_reply_is_right_only_if_it_equals_the_one_alone(
    seen: bench_backend.Truth, said: str
) -> None:
    tally = bench_backend.Tally(TRUTHS)
    tally.check(ONE, seen)
    assert tally.counts == {f"reply: {said}": 1}


@pytest.mark.parametrize(
    "counted", ["reply: wrong", "status 500", "status 503", "failed: error 500", "failed: no end"]
)
def test_benchmark_ends_with_a_sentence_if_the_backend_failed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, counted: str
) -> None:
    counts = {"reply: same as alone": 5, "status 200": 5, "status 422": 3, "status 429": 9}

    def run() -> object:
        """Return what the command's exit status is made of; None means 0."""
        monkeypatch.setattr(bench_backend, "measure_layer", lambda rounds: LAYER)
        monkeypatch.setattr(bench_backend, "measure_crowd", lambda environment: {"counts": counts})
        monkeypatch.setattr(sys, "argv", ["chatbot-bench-backend", f"--results={tmp_path}"])
        try:
            return bench_backend.main()
        except SystemExit as ended:
            return ended.code

    assert run() is None
    results = tmp_path / "backend.json"
    results.unlink()
    counts[counted] = 2
    assert f"2 x {counted}" in str(run())
    assert not results.exists()


def test_crowd_asks_a_model_whose_replies_do_not_depend_on_the_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[dict[str, str]] = []

    class StopHereError(Exception):
        pass

    def serve(environment: dict[str, str]) -> None:
        asked.append(environment)
        raise StopHereError

    monkeypatch.setattr(bench_backend, "serve", serve)
    with pytest.raises(StopHereError):
        bench_backend.measure_crowd({"CHATBOT_ENGINE": "fake"})
    assert asked == [{"CHATBOT_DTYPE": "float32", "CHATBOT_ENGINE": "fake"}]


def test_error_of_a_client_ends_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(client: bench_backend.Client, seconds: float) -> None:
        raise ConnectionError("cut")

    monkeypatch.setattr(bench_backend.Client, "run", run)
    with pytest.raises(ConnectionError, match="cut"):
        bench_backend.measure_crowd({"CHATBOT_ENGINE": "fake"}, clients=2, seconds=0.1)


def test_layer_costs_what_the_backend_used_beyond_the_engine() -> None:
    [row] = bench_backend.tabulate_layer(LAYER).to_dict("records")
    assert row["CPU/token, direct, µs"] == "25 (20 to 30)"
    assert row["layer's, µs"] == "125 (100 to 150)"
    assert row["n"] == 2


def test_round_counts_the_processor_time_of_whoever_replies() -> None:
    readings = iter((1.0, 1.5))
    asked = [lambda: bench_backend.Asked(0.1, 0.2, 250)] * 4
    assert bench_backend.run_round("HTTP", 0.01, asked, lambda: next(readings)).cpu_us == 500
