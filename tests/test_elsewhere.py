"""The hour on machines of others: pages behind a proxy, and what opens the hour there."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import FAKE
from websockets.sync.client import connect

import chatbot_arch.measure.launch as launch
import chatbot_arch.measure.live as live
import chatbot_arch.measure.users as users

ROOT = Path(__file__).parent.parent
CODESPACE = {
    "CODESPACE_NAME": "fluffy-disco",
    "GITHUB_CODESPACES_PORT_FORWARDING_DOMAIN": "app.example.dev",
}
HUB_PREFIX = "/user/ada/"


@contextmanager
def run_jupyter(folder: Path) -> Iterator[str]:
    """Run a Jupyter server below a base URL, as JupyterHub does; yield its host."""
    url = f"http://{launch.HOST}:{launch.find_free_port()}"
    options = (
        f"--ServerApp.ip={launch.HOST}",
        f"--ServerApp.port={url.rpartition(':')[2]}",
        f"--ServerApp.base_url={HUB_PREFIX}",
        f"--ServerApp.root_dir={folder}",
        "--IdentityProvider.token=",
        "--allow-root",
    )
    command = [sys.executable, "-m", "jupyter_server", *options]
    environment = {"JUPYTER_RUNTIME_DIR": str(folder), "JUPYTER_CONFIG_DIR": str(folder)}
    server = launch.start_server("Jupyter server", command, url, f"{HUB_PREFIX}api", environment)
    try:
        launch.wait_until_ready(server, 60)
        yield url
    finally:
        launch.stop_server(server)


def test_page_answers_behind_a_hub(tmp_path: Path) -> None:
    with run_jupyter(tmp_path) as host, launch.start_app("monolith", FAKE) as app:
        app.wait_until_ready()
        prefix = live.find_base_url({"JUPYTERHUB_SERVICE_PREFIX": HUB_PREFIX}, [])
        address = live.choose_address(app.page_url, CODESPACE, prefix)
        assert re.fullmatch(rf"{HUB_PREFIX}proxy/\d+", address)
        with users.PageUser(f"{host}{address}") as user:
            assert user.ask("What is a microservice?").text


@pytest.mark.parametrize("shape", ["monolith", "microservices"])
def test_page_knows_its_host_name_on_codespaces(
    shape: launch.Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in CODESPACE.items():
        monkeypatch.setenv(name, value)
    with launch.start_app(shape, FAKE) as app:
        app.wait_until_ready()
        origin = live.choose_address(app.page_url, os.environ)
        assert origin.startswith("https://fluffy-disco-")
        stream = f"{app.page_url.replace('http', 'ws', 1)}/_stcore/stream"
        with connect(stream, origin=origin, subprotocols=["streamlit"], proxy=None) as socket:
            assert socket.response.status_code == 101


def test_streamlit_reads_the_origin_of_jupyterlab() -> None:
    environment = launch.name_hosts(CODESPACE, 8501)
    read = subprocess.run(
        [sys.executable, "-m", "streamlit", "config", "show"],
        env={**os.environ, **environment, "NO_COLOR": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    shown = tomllib.loads(read.stdout[read.stdout.index("[global]") :])["server"]
    assert shown["corsAllowedOrigins"] == ["https://fluffy-disco-8888.app.example.dev"]


def test_make_lab_lets_in_the_browser_of_a_codespace() -> None:
    command = ["make", "--dry-run", "--old-file=.venv/.installed", "lab"]
    environment = {**os.environ, "MAKEFLAGS": "", **CODESPACE}
    made = subprocess.run(
        command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    )
    assert "--ServerApp.allow_origin='https://fluffy-disco-8888.app.example.dev'" in made.stdout


def test_dev_container_labels_the_ports_that_pages_get() -> None:
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    labelled = container["portsAttributes"]
    assert {str(port) for port in container["forwardPorts"]} <= labelled.keys()
    assert f"{launch.PORTS.start}-{launch.PORTS.stop - 1}" in labelled
    [opened] = container["customizations"]["codespaces"]["openFiles"]
    assert (ROOT / opened).exists()


def test_binder_installs_what_make_does() -> None:
    lines = (ROOT / ".binder" / "requirements.txt").read_text().splitlines()
    assert lines[1:] == ["--constraint ../constraints.txt", "--editable .[dev]"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "jupyter-server-proxy" in project["optional-dependencies"]["dev"]
    for script in ("postBuild", "start"):
        assert os.access(ROOT / ".binder" / script, os.X_OK)
