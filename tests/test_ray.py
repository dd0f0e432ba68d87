"""Replicas of the backend on Ray Serve: sessions, leaving, a killed replica, an update."""

import importlib.util
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import tabs
import yaml
from check_sync import ROOT
from playwright.sync_api import Browser, expect

import chatbot_arch.engines.protocol as protocol
import chatbot_arch.engines.remote as remote
import chatbot_arch.measure.clusters as clusters
import chatbot_arch.measure.launch as launch
import chatbot_arch.measure.load as load

CONFIG = ROOT / "deploy" / "serve.yaml"
CONFIGS = (CONFIG, ROOT / "deploy" / "serve-gpu.yaml")
REPLICAS, SLOTS = 2, 4
READY_S, DEADLINE_S = 180, 90
FAKE = {
    "CHATBOT_ENGINE": "fake",
    "CHATBOT_FAKE_TOKEN_S": "0.02",
    "CHATBOT_MAX_REPLIES": str(SLOTS),
}
CHECK = """
import sys, yaml
from ray.serve.schema import ServeDeploySchema
def names(value):
    if isinstance(value, dict):
        return {key: names(each) for key, each in value.items()}
    return [names(each) for each in value] if isinstance(value, list) else None
for path in sys.argv[1:]:
    content = yaml.safe_load(open(path))
    taken = ServeDeploySchema.model_validate(content).model_dump(exclude_unset=True, mode="json")
    assert names(taken) == names(content), "Serve ignores a name that it does not know."
"""

pytestmark = [
    pytest.mark.more,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None,
        reason="Ray is not installed; run `pip install -e '.[ray]'`",
    ),
]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the config of one machine with the fake engine; a replica takes 4, and 4 wait."""
    content = yaml.safe_load(CONFIG.read_text())
    [application] = content["applications"]
    application["runtime_env"]["env_vars"] |= FAKE
    application["deployments"][0] |= {
        "num_replicas": REPLICAS,
        "max_ongoing_requests": 12,
    }  # so that `/metrics` is answered, too
    path = tmp_path_factory.mktemp("cluster") / "serve.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def cluster(config: Path) -> Iterator[launch.Server]:
    """Yield a cluster whose replicas are ready; nothing of it is left afterwards."""
    server = launch.start_cluster(config, {})
    try:
        launch.wait_until_ready(server, READY_S)
        clusters.wait_for(server.url, lambda found: len(found) == REPLICAS)
        yield server
    finally:
        launch.stop_server(server)
    assert not server.processes()


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def replicas(server: launch.Server) -> list[int]:
    """Return the numbers of the replicas' processes."""
    return clusters.Cluster(server, "fake", {}).pids("chatbot")


def metric(url: str, name: str, session: str = "") -> float:
    """Return a value that one replica counts; always the same one's for a session."""
    headers = {"X-Session-ID": session} if session else {}
    answer = httpx.get(f"{url}/metrics", headers=headers, trust_env=False, timeout=30)
    lines = answer.raise_for_status().text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def owner(server: launch.Server, session: str) -> float:
    """Return when the replica that takes a session's requests was started."""
    return metric(server.url, "chatbot_reply_seconds_created", session)


def stream(url: str, question: str, session: str = "") -> str:
    """Return the last event of a reply, or what ended it."""
    headers = {"X-Session-ID": session} if session else {}
    body, last = {"user_input": question}, "nothing"
    try:
        with httpx.stream(
            "POST",
            f"{url}/chat/stream",
            json=body,
            headers=headers,
            trust_env=False,
            timeout=DEADLINE_S,
        ) as answer:
            if answer.is_error:
                return f"{answer.status_code}"
            for line in answer.iter_lines():
                last = line.removeprefix("event: ") if line.startswith("event: ") else last
    except httpx.HTTPError as error:
        return type(error).__name__
    return last


def test_configs_are_what_serve_takes() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHECK, *CONFIGS], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("engine", ["fake", "llamacpp"])
def test_config_that_is_measured_is_what_serve_takes(tmp_path: Path, engine: str) -> None:
    path = tmp_path / "measured.yaml"
    path.write_text(yaml.safe_dump(clusters.config_of(engine)))
    done = subprocess.run(
        [sys.executable, "-c", CHECK, path], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_check_notices_a_name_that_serve_ignores(tmp_path: Path) -> None:
    content = yaml.safe_load(CONFIG.read_text())
    content["applications"][0]["deployments"][0]["max_ongoing"] = 5
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(content))
    done = subprocess.run(
        [sys.executable, "-c", CHECK, tmp_path / "wrong.yaml"], capture_output=True, timeout=120
    )
    assert b"does not know" in done.stderr


def test_replies_come_through_the_router(cluster: launch.Server) -> None:
    chat = httpx.post(
        f"{cluster.url}/chat", json={"user_input": "/echo one two"}, trust_env=False, timeout=30
    )
    assert chat.json() == "one two"
    assert stream(cluster.url, "/echo one two") == "done"
    wrong = httpx.post(f"{cluster.url}/chat", json={"user_input": 1}, trust_env=False, timeout=30)
    assert wrong.status_code == 422
    assert "user_input" in wrong.text


def test_contract_holds_through_the_router(cluster: launch.Server) -> None:
    files = [ROOT / "tests" / f"{name}.py" for name in ("test_backend", "test_openai_client")]
    command = [sys.executable, "-m", "pytest", "-q", f"--at={cluster.url}", *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 90


def test_session_keeps_its_replica_and_sessions_use_both(cluster: launch.Server) -> None:
    started = {
        session: {owner(cluster, session) for _ in range(5)} for session in map(str, range(12))
    }
    assert all(len(times) == 1 for times in started.values())
    assert len(set.union(*started.values())) == REPLICAS


def test_leaving_frees_the_slot_of_the_replica(cluster: launch.Server) -> None:
    session, running = "leaving", "chatbot_replies_in_flight "
    with httpx.stream(
        "POST",
        f"{cluster.url}/chat/stream",
        json={"user_input": "/hang"},
        headers={"X-Session-ID": session},
        trust_env=False,
        timeout=30,
    ):
        wait_until(lambda: metric(cluster.url, running, session) == 1)
    wait_until(lambda: metric(cluster.url, running, session) == 0)


def test_full_cluster_answers_429_with_retry_after(cluster: launch.Server, config: Path) -> None:
    deployment = yaml.safe_load(config.read_text())["applications"][0]["deployments"][0]
    places = REPLICAS * deployment["max_ongoing_requests"] + deployment["max_queued_requests"]
    body = {"user_input": "/echo " + "word " * 100}
    with ThreadPoolExecutor(places + 30) as pool:
        asked = [
            pool.submit(
                httpx.post, f"{cluster.url}/chat", json=body, trust_env=False, timeout=DEADLINE_S
            )
            for _ in range(places + 30)
        ]
        answers = [each.result() for each in asked]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert {answer.status_code for answer in answers} == {200, 429}
    assert all(answer.headers["Retry-After"].isdecimal() for answer in refused)


def test_killed_replica_loses_only_its_replies_and_is_replaced(cluster: launch.Server) -> None:
    owners = {session: owner(cluster, session) for session in map(str, range(16))}
    assert len(set(owners.values())) == REPLICAS
    with ThreadPoolExecutor(16) as pool:
        asked = {
            session: pool.submit(stream, cluster.url, "/echo " + "word " * 100, session)
            for session in owners
        }
        for session in {each: session for session, each in owners.items()}.values():
            wait_until(lambda s=session: metric(cluster.url, "chatbot_replies_in_flight ", s))
        psutil.Process(replicas(cluster)[0]).kill()
        ends = {session: each.result() for session, each in asked.items()}
    broken = {session for session, end in ends.items() if end not in ("done", "429")}
    assert len({owners[session] for session in broken}) == 1, ends
    wait_until(lambda: len(replicas(cluster)) == REPLICAS)
    wait_until(lambda: {stream(cluster.url, "/echo on", str(n)) for n in range(8)} == {"done"})


def test_replica_whose_engine_died_is_replaced(cluster: launch.Server) -> None:
    wait_until(lambda: len(replicas(cluster)) == REPLICAS)
    before = set(replicas(cluster))
    assert stream(cluster.url, "/die", "dying") != "done"
    wait_until(lambda: set(replicas(cluster)) - before)
    wait_until(lambda: len(replicas(cluster)) == REPLICAS)
    wait_until(lambda: stream(cluster.url, "/echo on", "dying") == "done")


def test_page_is_told_when_all_replicas_die(
    cluster: launch.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATBOT_BACKEND_URL", cluster.url)
    answerer = remote.RemoteAnswerer()
    talk = protocol.to_conversation([], [], "/echo " + "word " * 2000)
    pieces = answerer.stream(talk, protocol.Options(), protocol.Stop())
    assert next(pieces)
    for victim in replicas(cluster):
        psutil.Process(victim).kill()
    with pytest.raises(remote.BackendError, match="broke off"):
        list(pieces)
    wait_until(lambda: stream(cluster.url, "/echo on") == "done")
    again = answerer.stream(
        protocol.to_conversation([], [], "/echo back"), protocol.Options(), protocol.Stop()
    )
    assert "".join(piece for piece in again if isinstance(piece, str)) == "back"
    answerer.close()


@pytest.fixture
def page_url(cluster: launch.Server) -> Iterator[str]:
    """Serve the front end in front of the cluster; yield its address."""
    asked = {"CHATBOT_BACKEND_URL": cluster.url, "CHATBOT_DATABASE_URL": "sqlite://"}
    server = launch.start_page(asked)
    try:
        launch.wait_until_ready(server, READY_S)
        yield server.url
    finally:
        launch.stop_server(server)


def test_six_questions_on_a_page_and_all_replicas_killed_in_the_seventh(
    browser: Browser, hosts: list[str], cluster: launch.Server, page_url: str
) -> None:
    wait_until(lambda: len(replicas(cluster)) == REPLICAS)
    with tabs.open_context(browser, hosts) as context:
        page = tabs.open_tab(context, page_url, hosts)
        questions = ["one", "two", "three", "four", "five", "six"]
        for number, question in enumerate(questions, 1):
            tabs.ask(page, question)
            tabs.expect_messages(page, tabs.turns(reversed(questions[:number])))
        tabs.ask(page, tabs.SLOWLY)
        shown = tabs.expect_growing(page)
        for victim in replicas(cluster):
            psutil.Process(victim).kill()
        expect(page.get_by_text("broke off").first).to_be_visible()
        tabs.expect_kept(page, shown, "Broken off here.")
        wait_until(lambda: len(replicas(cluster)) == REPLICAS)
        wait_until(lambda: {stream(cluster.url, "/echo on", str(n)) for n in range(8)} == {"done"})
        tabs.ask(page, "still there?")
        answered = tabs.message(page, 1).get_by_text("still there?", exact=True)
        expect(answered).to_be_visible()
        kept = tabs.turns(reversed(questions))
        for position, text in enumerate(kept, 4):
            expect(tabs.message(page, position).get_by_text(text, exact=True)).to_be_visible()


def test_update_under_load_fails_no_request(cluster: launch.Server, config: Path) -> None:
    content: dict[str, Any] = yaml.safe_load(config.read_text())
    running = clusters.Cluster(cluster, "fake", content)
    clusters.wait_for(cluster.url, lambda found: len(found) == REPLICAS)
    before = clusters.answering(cluster.url)

    def update() -> None:
        clusters.hand_over(running, "chatbot", CHATBOT_SYSTEM_PROMPT="Be brief.")
        clusters.wait_for(cluster.url, lambda found: len(found) == REPLICAS and not found & before)

    seen = load.ask_during(cluster.url, 8, "/echo " + "word " * 20, update)
    assert not seen.failed
    assert len(seen.ended) > 8


def test_stopped_cluster_leaves_no_process(config: Path) -> None:
    server = launch.start_cluster(config, {}, replicas=1)
    try:
        launch.wait_until_ready(server, READY_S)
        assert len(server.processes()) > 3
    finally:
        launch.stop_server(server)
    assert not server.processes()
