"""Commands that start servers: they end with their starter, and fail with a sentence."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import FAKE
from jupyter_client.manager import start_new_kernel

import chatbot_arch.launch as launch
import chatbot_arch.users as users

COMMANDS = Path(sys.executable).parent


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
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    assert not alive


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
import chatbot_arch.launch as launch
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
    wait_until_gone(servers)


@pytest.mark.parametrize(
    ("command", "environment", "sentence"),
    [
        (["chatbot-launch", "microservices"], {"CHATBOT_MODEL": "./no/model"}, "no folder ./no/m"),
        (["chatbot-launch", "monolith"], {"CHATBOT_ENGINE": "warp"}, "CHATBOT_ENGINE='warp'"),
        (["chatbot-fetch"], {"CHATBOT_MODEL": "no.gguf"}, "There is no file no.gguf"),
        (["chatbot-compare", "--rounds", "0"], {}, "--rounds must be at least 1"),
        (["chatbot-compare"], {"CHATBOT_MODEL": "./no/model"}, "no folder ./no/model"),
        (["uvicorn", "chatbot_arch.backend:app", "--port", "0"], {"CHATBOT_ENGINE": "x"}, "ENGINE"),
        (
            ["uvicorn", "chatbot_arch.backend:app", "--port", "0"],
            {"CHATBOT_MODEL": "someone/no-such-model", "HF_ENDPOINT": "http://127.0.0.1:9"},
            "the model hub did not give it",
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
