"""The backend as a BentoML service, and what BentoML's own way does otherwise."""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import tabs
from check_sync import ROOT
from playwright.sync_api import Browser, expect

import chatbot_arch.measure.claims as claims
import chatbot_arch.measure.experiments as experiments
import chatbot_arch.measure.launch as launch
import chatbot_arch.measure.results as results
import chatbot_arch.measure.rounds as rounds
import chatbot_arch.measure.swaps as swaps

FOLDER = ROOT / "swaps" / "bentoml"
READY_S, DEADLINE_S = 120, 60
BENTOML_S = 60  # its own limit for the first byte of an answer
IN_FLIGHT = "chatbot_replies_in_flight {}.0"
FAKE = {"CHATBOT_ENGINE": "fake", "CHATBOT_FAKE_TOKEN_S": "0.02"}
WORKER = "_bentoml_impl.worker.service"

# The tests of the backend's contract that fail against this service, each with the reason.
FAILING: dict[str, str] = {}

# Requests whose answers differ from the backend's on uvicorn, each with the reason.
PASSED_ON = "BentoML asks the backend only for paths that it has, and answers the others itself"
OWN = "the path is BentoML's own, and the backend's checks of key and host come after it"
DIFFERENT = {
    "no such path": PASSED_ON,
    "no such path under /v1": PASSED_ON,
    "no such path, without a key": PASSED_ON,
    "chat with a slash": "BentoML redirects, so the headers for another origin lack",
    "metrics": "BentoML's counts come first, in its version of the format",
    "metrics without a key": OWN,
    "metrics for another host": OWN,
}
KEY, PAGE = "a-key-of-the-tests", "http://localhost:5173"
HEADERS = {"Authorization": f"Bearer {KEY}"}
ASKED: dict[str, dict[str, Any]] = {
    "health": {"url": "/"},
    "health, HEAD": {"method": "HEAD", "url": "/"},
    "health for another host": {"url": "/", "headers": {"Host": "example.org"}},
    "live": {"url": "/live"},
    "ready": {"url": "/ready"},
    "docs": {"url": "/docs"},
    "schema": {"url": "/openapi.json"},
    "metrics": {"url": "/metrics"},
    "metrics without a key": {"url": "/metrics", "headers": {"Authorization": ""}},
    "metrics for another host": {"url": "/metrics", "headers": {"Host": "example.org"}},
    "models": {"url": "/v1/models"},
    "chat": {"method": "POST", "url": "/chat", "json": {"user_input": "/echo one two"}},
    "chat by GET": {"url": "/chat"},
    "chat with a slash": {"method": "POST", "url": "/chat/", "json": {"user_input": "/echo hi"}},
    "chat without a key": {
        "method": "POST",
        "url": "/chat",
        "json": {"user_input": "/echo hi"},
        "headers": {"Authorization": ""},
    },
    "chat that fails": {"method": "POST", "url": "/chat", "json": {"user_input": "/raise"}},
    "chat with a wrong body": {"method": "POST", "url": "/chat", "json": {"user_input": 7}},
    "chat with a large body": {"method": "POST", "url": "/chat", "content": b"x" * 8_100_000},
    "stream": {"method": "POST", "url": "/chat/stream", "json": {"user_input": "/echo hi"}},
    "stream that fails": {
        "method": "POST",
        "url": "/chat/stream",
        "json": {"user_input": "/raise"},
    },
    "another origin asks before": {
        "method": "OPTIONS",
        "url": "/chat/stream",
        "headers": {"Origin": PAGE, "Access-Control-Request-Method": "POST"},
    },
    "another origin": {"url": "/ready", "headers": {"Origin": PAGE}},
    "no such path": {"url": "/nothing"},
    "no such path, without a key": {"url": "/nothing", "headers": {"Authorization": ""}},
    "no such path under /v1": {"url": "/v1/nothing"},
}
BY_SERVER = {"date", "server", "content-length", "x-request-id"}

pytestmark = [pytest.mark.more, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def programs() -> Path:
    """Return the programs' folder of an environment with BentoML, which is built once."""
    try:
        return swaps.build_bentoml()
    except results.MeasureError as error:
        pytest.skip(f"The environment of swaps/bentoml could not be built: {error}")


Start = Callable[..., launch.Server]


@pytest.fixture(scope="module")
def start(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Return how to start a service and wait until it is ready."""

    @contextmanager
    def run(target: str, ready_path: str = "/ready", **changes: str) -> Iterator[launch.Server]:
        port = launch.find_free_port()
        command = [str(programs / "bentoml"), "serve", target, "--working-dir", str(FOLDER)]
        command += ["--host", launch.HOST, "--port", str(port)]
        home = tmp_path_factory.mktemp("bentoml")
        given = {"PYTHONPATH": str(ROOT), "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "true"}
        given |= FAKE | changes
        url, grace_s = f"http://{launch.HOST}:{port}", launch.backend_grace_s(given)
        server = launch.start_server("service", command, url, ready_path, given, grace_s)
        try:
            launch.wait_until_ready(server, READY_S)
            yield server
        finally:
            started = workers(server)
            launch.stop_server(server)
            _, left = psutil.wait_procs(started, timeout=5)
            for process in left:
                process.kill()
        assert not left
        assert not server.processes()

    return run


@pytest.fixture(scope="module")
def service(start: Start) -> Iterator[launch.Server]:
    """Yield the backend as a service."""
    with start("service:Chatbot") as running:
        yield running


@pytest.fixture(scope="module")
def native(start: Start) -> Iterator[launch.Server]:
    """Yield the same engine in BentoML's own way."""
    with start("native:Native", "/readyz") as running:
        yield running


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def post(server: launch.Server, path: str, question: str, **more: Any) -> httpx.Response:
    options = {"timeout": DEADLINE_S, "trust_env": False} | more
    return httpx.post(f"{server.url}{path}", json={"user_input": question}, **options)


def read_stream(server: launch.Server, question: str, begun: Callable[[], None]) -> list[str]:
    """Return the names of a streamed reply's events; call `begun` after the first."""
    names: list[str] = []
    asked = {"json": {"user_input": question}, "timeout": DEADLINE_S, "trust_env": False}
    with httpx.stream("POST", f"{server.url}/chat/stream", **asked) as answer:
        for line in answer.iter_lines():
            if line.startswith("event: "):
                names.append(line.removeprefix("event: "))
                if len(names) == 1:
                    begun()
    return names


def metric(server: launch.Server, name: str) -> str:
    """Return the values of a metric, one line each."""
    text = httpx.get(f"{server.url}/metrics", trust_env=False).raise_for_status().text
    return "\n".join(line for line in text.splitlines() if line.startswith(name))


def workers(server: launch.Server) -> list[psutil.Process]:
    """Return the processes that hold an engine; each is in a session of its own."""
    found = {child for each in server.processes() for child in each.children(recursive=True)}
    return [each for each in found if launch.is_alive(each) and WORKER in each.cmdline()]


def test_contract_holds_but_for_a_known_list(service: launch.Server) -> None:
    files = [ROOT / "tests" / f"{name}.py" for name in ("test_backend", "test_openai_client")]
    command = [sys.executable, "-m", "pytest", "-q", "-rf", f"--at={service.url}", *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    failed = re.findall(r"^(?:FAILED|ERROR) .*::(\S+)", done.stdout, re.MULTILINE)
    assert sorted(failed) == sorted(FAILING), done.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 90
    assert not re.search(r"\d+ (skipped|error)", done.stdout)


def look(url: str, asked: dict[str, Any]) -> tuple[object, ...]:
    """Return of an answer what a client sees, without what each request changes."""
    asked = {"method": "GET", "timeout": DEADLINE_S} | asked
    headers = HEADERS | asked.pop("headers", {})
    path = asked.pop("url")
    with httpx.Client(base_url=url, trust_env=False) as client:
        answer = client.request(url=path, headers=headers, **asked)
    names = sorted(set(answer.headers) - BY_SERVER)
    location = answer.headers.get("location", "").removeprefix(url)
    text = re.sub(r'"request_id": ?"[^"]*"', "", answer.text)
    text = "" if path in ("/metrics", "/v1/models") and answer.is_success else text
    kind = answer.headers.get("content-type", "")
    return answer.status_code, kind, names, location, text


def test_answers_differ_from_uvicorns_in_a_known_list(start: Start) -> None:
    given = {"CHATBOT_API_KEY": KEY, "CHATBOT_ALLOWED_ORIGINS": PAGE}
    backend = launch.start_backend(FAKE | given)
    try:
        launch.wait_until_ready(backend, READY_S)
        with start("service:Chatbot", **given) as service:
            pairs = {
                name: [look(server.url, asked) for server in (backend, service)]
                for name, asked in ASKED.items()
            }
    finally:
        launch.stop_server(backend)
    different = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    assert set(different) == set(DIFFERENT), different


def test_full_service_refuses_as_the_backend_does(start: Start) -> None:
    with start("service:Chatbot", CHATBOT_MAX_REPLIES="1", CHATBOT_MAX_WAITING="1") as service:
        calls = [
            threading.Thread(target=read_stream, args=(service, "/echo " + "w " * 200, int))
            for _ in range(2)
        ]
        for number, call in enumerate(calls):
            call.start()
            names = ("chatbot_replies_in_flight 1", "chatbot_requests_waiting 1")
            wait_until(lambda name=names[number]: metric(service, name))
        refused = post(service, "/chat", "/echo hi")
        for call in calls:
            call.join()
    assert refused.status_code == 429
    assert refused.headers["retry-after"].isdecimal()
    assert refused.json()["code"] == "full"


def test_leaving_frees_the_slot(service: launch.Server) -> None:
    body = {"json": {"user_input": "/hang"}, "trust_env": False, "timeout": 30}
    with httpx.stream("POST", f"{service.url}/chat/stream", **body):
        wait_until(lambda: metric(service, "chatbot_replies_in_flight") == IN_FLIGHT.format(1))
    wait_until(lambda: metric(service, "chatbot_replies_in_flight") == IN_FLIGHT.format(0))
    with pytest.raises(httpx.ReadTimeout):
        post(service, "/chat", "/hang", timeout=1)
    wait_until(lambda: metric(service, "chatbot_replies_in_flight") == IN_FLIGHT.format(0))


def test_reply_may_begin_after_bentomls_own_limit(start: Start) -> None:
    late = {"CHATBOT_FAKE_TOKEN_S": str(BENTOML_S + 3)}
    with (
        start("service:Chatbot", **late) as service,
        start("native:Native", "/readyz", **late) as native,
        ThreadPoolExecutor(2) as pool,
    ):
        waiting = [
            pool.submit(post, server, "/chat", "/echo hi", timeout=2 * BENTOML_S)
            for server in (service, native)
        ]
        statuses = [each.result().status_code for each in waiting]
    assert statuses == [200, 504]


def test_metrics_have_each_series_once(service: launch.Server) -> None:
    assert post(service, "/chat", "/echo hi").json() == "hi"
    text = httpx.get(f"{service.url}/metrics", trust_env=False).text
    series = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    assert len(series) == len(set(series))
    assert {name.partition("_")[0] for name in series} == {"bentoml", "chatbot"}


def test_engine_that_died_fails_the_probes(start: Start) -> None:
    with start("service:Chatbot") as service:

        def probes() -> list[int]:
            paths = ("/", "/live", "/ready", "/livez", "/readyz")
            asked = [httpx.get(f"{service.url}{path}", trust_env=False) for path in paths]
            return [answer.status_code for answer in asked]

        assert probes() == [200] * 5
        assert post(service, "/chat", "/die").status_code == 503
        assert probes() == [200, 503, 503, 503, 503]


def test_stopping_lets_replies_end_and_leaves_no_process(start: Start) -> None:
    with start("service:Chatbot") as service:
        [worker] = workers(service)
        stop = threading.Thread(target=launch.stop_server, args=(service,))
        names = read_stream(service, "/echo" + " w" * 100, stop.start)
        assert (names.count("token"), names[-1]) == (100, "done")
        stop.join()
        assert not service.processes()
        assert not launch.is_alive(worker)


def test_bad_setting_is_one_sentence(programs: Path, tmp_path: Path) -> None:
    command = [programs / "bentoml", "serve", "service:Chatbot", "--working-dir", FOLDER]
    given = {"PYTHONPATH": str(ROOT), "BENTOML_HOME": str(tmp_path), "CHATBOT_MAX_REPLIES": "many"}
    given |= {"BENTOML_DO_NOT_TRACK": "true"}
    done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=READY_S)
    assert done.returncode == 1
    assert "CHATBOT_MAX_REPLIES" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.fixture
def page_url(service: launch.Server) -> Iterator[str]:
    """Serve the front end in front of the service; yield its address."""
    asked = {"CHATBOT_BACKEND_URL": service.url, "CHATBOT_DATABASE_URL": "sqlite://"}
    server = launch.start_page(asked)
    try:
        launch.wait_until_ready(server, READY_S)
        yield server.url
    finally:
        launch.stop_server(server)


def test_six_questions_on_a_page_and_the_worker_killed_in_the_seventh(
    browser: Browser, hosts: list[str], service: launch.Server, page_url: str
) -> None:
    with tabs.open_context(browser, hosts) as context:
        page = tabs.open_tab(context, page_url, hosts)
        questions = ["one", "two", "three", "four", "five", "six"]
        for number, question in enumerate(questions, 1):
            tabs.ask(page, question)
            tabs.expect_messages(page, tabs.turns(reversed(questions[:number])))
        tabs.ask(page, tabs.SLOWLY)
        shown = tabs.expect_growing(page)
        [victim] = workers(service)
        victim.kill()
        expect(page.get_by_text("broke off").first).to_be_visible()
        tabs.expect_kept(page, shown, "Broken off here.")
        wait_until(lambda: workers(service) and launch.is_ready(service))
        assert workers(service) != [victim]
        tabs.ask(page, "still there?")
        answered = tabs.message(page, 1).get_by_text("still there?", exact=True)
        expect(answered).to_be_visible()
        kept = tabs.turns(reversed(questions))
        for position, text in enumerate(kept, 4):
            expect(tabs.message(page, position).get_by_text(text, exact=True)).to_be_visible()


def test_native_text_is_not_json(native: launch.Server, service: launch.Server) -> None:
    answers = [post(server, "/chat", '/echo "so be it"') for server in (native, service)]
    kinds = [answer.headers["content-type"] for answer in answers]
    assert kinds == ["text/plain; charset=utf-8", "application/json"]
    assert [answer.text for answer in answers] == ['"so be it"', r'"\"so be it\""']
    assert [answer.json() for answer in answers] == ["so be it", '"so be it"']  # JSON by chance


def test_native_stream_hides_an_error(native: launch.Server, service: launch.Server) -> None:
    hidden = post(native, "/stream", "/raise")  # httpx raises if an answer is not complete
    assert (hidden.status_code, hidden.headers["content-type"].partition(";")[0]) == (
        200,
        "text/event-stream",
    )
    assert hidden.text == post(native, "/stream", "/echo This").text == "This"
    told = post(service, "/chat/stream", "/raise").text
    assert re.findall(r"event: (\w+)", told) == ["token", "error"]
    assert "This reply failed" in told


def test_native_reply_goes_on_after_its_client_left(
    native: launch.Server, service: launch.Server
) -> None:
    waited_s = []
    for server in (service, native):
        with pytest.raises(httpx.ReadTimeout):
            post(server, "/chat", "/echo " + "w " * 250, timeout=0.5)  # takes five seconds
        began = time.monotonic()
        assert post(server, "/chat", "/echo hi").text.strip('"') == "hi"
        waited_s.append(time.monotonic() - began)
    assert waited_s[0] < 2 < 3 < waited_s[1]  # the one thread that answers is busy


def test_both_backends_are_measured(programs: Path) -> None:
    few = experiments.Scale(rounds=1, starts=1, tokens=4, times=1)
    with rounds.Bench(FAKE) as bench:
        steps = (swaps.swap_backend, swaps.swap_start)
        rows = [row for step in steps for done in step(bench, "fake", few) for row in done]
        servers = list(bench.servers.values())
        started = [psutil.Process(pid) for each in servers for pid in swaps.family(each)]
        service = next(each for each in servers if workers(each))
        assert {each.pid for each in workers(service)} <= set(swaps.family(service))
    seen = {(row.shape, row.measure): row.value for row in rows}
    for shape in claims.AT_ONE + claims.AT_MANY:
        assert seen[shape, "characters"] == len("word word word word")
        assert seen[shape, "tokens_per_s"] > 0
    for name in (swaps.UVICORN, swaps.BENTOML):
        assert seen[name, "ready_s"] > 0
        assert seen[name, "memory_mb"] > 10
    assert started
    assert not list(filter(launch.is_alive, started))
