"""Commands that start servers: they end with their starter, and fail with a sentence."""

import contextlib
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from conftest import FAKE
from jupyter_client.manager import start_new_kernel

import chatbot_arch.measure.launch as launch
import chatbot_arch.measure.users as users

COMMANDS = Path(sys.executable).parent
if sys.platform == "win32":
    pytest.skip("commands are ended here by POSIX signals", allow_module_level=True)


@contextlib.contextmanager
def launched(*command: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Run one of the package's commands in a session of its own; end it if the test has not."""
    program, *rest = command
    process = subprocess.Popen(
        [COMMANDS / program, *rest],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # A shell that runs the tests in the background has them ignore Ctrl-C; a person's does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=30)


def wait_for_line(process: subprocess.Popen[str], text: str) -> str:
    """Return the line that holds `text`; fail if the command ends without it."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return line
    pytest.fail(f"ended without saying {text!r}:\n{''.join(lines)}")


def wait_until_gone(processes: list[psutil.Process], timeout_s: float = 20) -> None:
    assert processes
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    assert not alive


def wait_until_said(server: launch.Server, text: str) -> None:
    """Return once a server's log holds `text`."""
    deadline = time.monotonic() + 60
    while text not in server.log_tail():
        assert time.monotonic() < deadline
        assert server.process.poll() is None
        time.sleep(0.01)


def wait_until_refused(url: str) -> None:
    """Return once a server takes no more connections."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            httpx.get(f"{url}/live", trust_env=False)
        except httpx.ConnectError:
            return
        except httpx.TransportError:  # taken just before, and closed with the server
            pass
        time.sleep(0.05)
    pytest.fail("it still takes connections")


@contextlib.contextmanager
def replying(url: str, question: str) -> Iterator[Iterator[str]]:
    """Ask a backend; yield the rest of its answer's lines once it speaks."""
    body = {"user_input": question}
    with (
        httpx.Client(timeout=60, trust_env=False) as client,
        client.stream("POST", f"{url}/chat/stream", json=body) as told,
    ):
        lines = told.iter_lines()
        assert next(lines) == "event: token"
        yield lines


def read_end(lines: Iterator[str]) -> tuple[str, dict]:
    """Return the last event's name and data."""
    *_, event, data, _ = lines
    return event, json.loads(data.removeprefix("data: "))


def read_turns(database: Path) -> list[tuple[str, str]]:
    """Return each turn's reply and state, as the database holds them."""
    address = f"file:{database}?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(address, uri=True)) as connection:
            return connection.execute("SELECT reply, state FROM turns").fetchall()
    except sqlite3.OperationalError:  # it is not there yet
        return []


def wait_until_kept(database: Path, text: str) -> None:
    """Return once a turn's reply in the database begins with `text`."""
    deadline = time.monotonic() + 60
    while not any(reply.startswith(text) for reply, _ in read_turns(database)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


SLOW = FAKE | {"CHATBOT_FAKE_TOKEN_S": "0.1"}
LONG = "/echo " + " ".join(map(str, range(80)))  # 8 s: longer than a page is given to end
ENDLESS = "/echo " + "word " * 19_000


def test_stop_lets_a_reply_under_way_finish() -> None:
    with launch.start("microservices", SLOW) as app, ThreadPoolExecutor(1) as pool:
        backend = app.wait_until_ready(120).servers[0]
        processes = backend.processes()
        with replying(backend.url, LONG) as lines:
            stopping = pool.submit(app.stop)
            event, data = read_end(lines)
        assert (event, data["reason"], data["reply_tokens"]) == ("event: done", "stop", 80)
        stopping.result(60)
        assert processes
        assert not any(map(launch.is_alive, processes))


def test_stop_lets_a_reply_of_the_page_finish(tmp_path: Path) -> None:
    kept = {"CHATBOT_DATABASE_URL": f"sqlite:///{tmp_path / 'chats.db'}"}
    with launch.start("microservices", SLOW | kept) as app:
        app.wait_until_ready(120)
        with users.PageUser(app.page_url) as user, ThreadPoolExecutor(1) as pool:
            asking = pool.submit(user.ask, LONG)
            wait_until_kept(tmp_path / "chats.db", "0 1")
            app.stop()
            with contextlib.suppress(users.PageError):
                asking.result(60)
    [(reply, state)] = read_turns(tmp_path / "chats.db")
    assert (reply, state) == (LONG.removeprefix("/echo "), "done")


def test_stop_lets_the_backend_say_that_it_ends_a_reply() -> None:
    environment = FAKE | {"CHATBOT_ENDING_TIMEOUT_S": "6"}
    with launch.start("microservices", environment) as app, ThreadPoolExecutor(1) as pool:
        backend = app.wait_until_ready(120).servers[0]
        with replying(backend.url, ENDLESS) as lines:
            stopping = pool.submit(app.stop)
            event, data = read_end(lines)
        assert (event, data["code"]) == ("event: error", "ending")
        stopping.result(60)


@pytest.mark.parametrize("killed", ["launcher", "guards and launcher"])
def test_reply_under_way_finishes_when_its_launcher_is_killed(killed: str) -> None:
    if killed == "guards and launcher" and sys.platform != "linux":
        pytest.skip("only Linux tells a server that its guard is gone")
    with launched("chatbot-launch", "microservices", **SLOW) as launcher:
        url = re.search(r"backend (\S+)", wait_for_line(launcher, "Ready:"))[1]
        servers = psutil.Process(launcher.pid).children(recursive=True)
        guards = psutil.Process(launcher.pid).children()
        assert (len(guards), len(servers)) == (2, 4)
        with replying(url, LONG) as lines:
            for each in guards if killed == "guards and launcher" else ():
                each.kill()
            launcher.kill()
            event, data = read_end(lines)
        assert (event, data["reason"]) == ("event: done", "stop")
        wait_until_gone(servers)


def test_second_ctrl_c_does_not_wait_for_replies() -> None:
    environment = FAKE | {"CHATBOT_ENDING_TIMEOUT_S": "600"}
    with launched("chatbot-launch", "microservices", **environment) as launcher:
        url = re.search(r"backend (\S+)", wait_for_line(launcher, "Ready:"))[1]
        servers = psutil.Process(launcher.pid).children(recursive=True)
        assert len(servers) == 4  # each has a guard
        with replying(url, ENDLESS) as lines:
            launcher.send_signal(signal.SIGINT)
            assert "Ctrl-C again" in wait_for_line(launcher, "Stopping")
            wait_until_refused(url)
            assert next(lines)  # the backend lets its reply go on
            assert launcher.poll() is None
            launcher.send_signal(signal.SIGINT)
            assert launcher.wait(30) == 130
        wait_until_gone(servers)


DEAF = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "print('hears nothing', flush=True); time.sleep(600)"
)


def test_stop_ends_a_server_whose_guard_was_killed() -> None:
    command = [sys.executable, "-c", DEAF]
    server = launch.start_server("deaf", command, "http://127.0.0.1:9", "/", {})
    server.grace_s = 0.5
    wait_until_said(server, "hears nothing")
    [process] = server.processes()
    try:
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait(30)
        assert server.processes() == [process]  # it lives on, and counts
        assert launch.App("deaf", server.url, [server]).memory_mb() > 1
        launch.stop_server(server)
        assert not launch.is_alive(process)
        assert server.processes() == []
    finally:
        if launch.is_alive(process):
            process.kill()


def test_suspended_server_is_woken_up_to_end_by_itself(tmp_path: Path) -> None:
    said = tmp_path / "said"
    code = (
        "import pathlib, signal, sys, time;"
        f"signal.signal(signal.SIGTERM, lambda *_: sys.exit(pathlib.Path({str(said)!r}).touch()));"
        "print('sleeps', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code]
    server = launch.start_server("suspended", command, "http://127.0.0.1:9", "/", {})
    wait_until_said(server, "sleeps")
    [process] = server.processes()
    process.suspend()
    launch.stop_server(server)
    assert said.exists()  # it was not killed
    assert not launch.is_alive(process)


def test_stop_waits_for_the_reply_of_a_backend_whose_guard_was_killed() -> None:
    with launch.start("microservices", SLOW) as app, ThreadPoolExecutor(1) as pool:
        backend = app.wait_until_ready(120).servers[0]
        [process] = backend.processes()
        try:
            with replying(backend.url, LONG) as lines:
                backend.process.kill()
                backend.process.wait(30)
                stopping = pool.submit(app.stop)
                event, data = read_end(lines)
            assert (event, data["reason"]) == ("event: done", "stop")
            stopping.result(60)
            assert not launch.is_alive(process)
        finally:
            if launch.is_alive(process):
                process.kill()


def test_stop_leaves_alone_what_took_the_number_of_a_guard() -> None:
    server = launch.start_server("done", [sys.executable, "-c", ""], "http://127.0.0.1:9", "/", {})
    server.process.wait(30)
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    with subprocess.Popen(command, start_new_session=True) as stranger:
        server.process.pid = stranger.pid
        assert server.processes() == []
        launch.stop_server(server)
        assert stranger.poll() is None
        stranger.kill()


@pytest.mark.parametrize("architecture", ["monolith", "microservices"])
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_servers_end_with_their_launcher(architecture: str, ending: signal.Signals) -> None:
    with launched("chatbot-launch", architecture, CHATBOT_ENGINE="fake") as launcher:
        wait_for_line(launcher, "Ready: page http://127.0.0.1:")
        servers = psutil.Process(launcher.pid).children(recursive=True)
        assert len(servers) == (2 if architecture == "monolith" else 4)  # each has a guard
        launcher.send_signal(ending)
        launcher.wait(30)
        wait_until_gone(servers)


def test_servers_end_with_a_killed_notebook_kernel() -> None:
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        kernel = psutil.Process(manager.provisioner.pid)
        code = f"""
import chatbot_arch.measure.launch as launch
app = launch.start("microservices", {FAKE!r}).wait_until_ready(120)
"""
        assert client.execute_interactive(code, timeout=180)["content"]["status"] == "ok"
        servers = kernel.children(recursive=True)
        assert len(servers) == 4  # each has a guard
        kernel.kill()
        wait_until_gone(servers)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says which ports it gives")
def test_free_port_is_none_that_the_system_gives_to_connections() -> None:
    given = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text()
    first, last = map(int, given.split())
    assert launch.find_free_port() not in range(first, last + 1)


def test_taken_port_is_not_found() -> None:
    taken = launch.find_free_port()
    with socket.create_server((launch.HOST, taken)):
        assert launch.find_free_port(taken) != taken
    assert launch.find_free_port(taken) == taken


def test_second_launcher_takes_a_free_port() -> None:
    with launched("chatbot-launch", "monolith", CHATBOT_ENGINE="fake") as one:
        first = wait_for_line(one, "Ready:")
        with launched("chatbot-launch", "monolith", CHATBOT_ENGINE="fake") as two:
            assert wait_for_line(two, "Ready:") != first
            servers = [
                child
                for launcher in (one, two)
                for child in psutil.Process(launcher.pid).children(recursive=True)
            ]
            assert len(servers) == 4
    wait_until_gone(servers)


@pytest.mark.parametrize(
    ("command", "environment", "sentence"),
    [
        (["chatbot-launch", "microservices"], {"CHATBOT_MODEL": "./no/model"}, "no folder ./no/m"),
        (["chatbot-launch", "monolith"], {"CHATBOT_ENGINE": "warp"}, "CHATBOT_ENGINE='warp'"),
        (["chatbot-fetch"], {"CHATBOT_MODEL": "no.gguf"}, "There is no file no.gguf"),
        (["chatbot-compare", "--only", "99"], {}, "No claim is called 99"),
        (["chatbot-bench-pages", "--rounds", "3"], {}, "--rounds must be even and at least 2"),
        (
            ["chatbot-compare", "--only", "1b"],
            {"CHATBOT_MODEL": "./no/model"},
            "./no/model is not one",
        ),
        (["uvicorn", "chatbot_arch.backend:app", "--port", "0"], {"CHATBOT_ENGINE": "x"}, "ENGINE"),
        (
            ["uvicorn", "chatbot_arch.backend:app", "--port", "0"],
            {"CHATBOT_MODEL": "someone/no-such-model", "HF_ENDPOINT": "http://127.0.0.1:9"},
            "the model hub did not provide it",
        ),
    ],
)
def test_bad_choice_is_a_sentence_and_a_status(
    command: list[str], environment: dict[str, str], sentence: str
) -> None:
    with launched(*command, **environment) as process:
        output, _ = process.communicate(timeout=120)
    assert process.returncode not in (0, None)
    assert sentence in output
    assert "Traceback" not in output


def test_page_of_a_missing_model_shows_the_sentence() -> None:
    with launch.start("monolith", {"CHATBOT_MODEL": "./no/model"}) as app:
        app.wait_until_ready(60)
        with (
            users.PageUser(app.page_url) as user,
            pytest.raises(users.PageError, match=r"There is no folder ./no/model"),
        ):
            user.ask("hello")


def test_deadline_is_kept_by_a_server_that_never_gets_ready() -> None:
    port = launch.find_free_port()
    script = "import time; print('still thinking', flush=True); time.sleep(600)"
    command = [sys.executable, "-c", script]
    server = launch.start_server("backend", command, f"http://127.0.0.1:{port}", "/ready", {})
    started = time.monotonic()
    with pytest.raises(launch.LaunchError, match=r"(?s)not ready after 2 s.*still thinking"):
        launch.wait_until_ready(server, timeout_s=2)
    assert time.monotonic() - started < 30
    processes = server.processes()
    launch.stop_server(server)
    wait_until_gone(processes)
