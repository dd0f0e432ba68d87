"""What the cluster's files say, and what a page sends to a router and reads from one."""

import importlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from check_sync import ROOT
from fastapi.testclient import TestClient

import chatbot_arch.cluster as cluster
import chatbot_arch.engines.local as local
import chatbot_arch.engines.protocol as protocol
import chatbot_arch.engines.remote as remote
import chatbot_arch.settings as settings

CONFIGS = (ROOT / "deploy" / "serve.yaml", ROOT / "deploy" / "serve-gpu.yaml")
RAY_SERVICE = ROOT / "deploy" / "rayservice.yaml"
SCHEMA = Path(__file__).with_name("rayservice-schema.json")
KUBERNETES = "1.34"


def deployment_of(config: dict[str, Any]) -> dict[str, Any]:
    return config["applications"][0]["deployments"][0]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_names_the_application_and_the_class(path: Path) -> None:
    config = cluster.read_config(path)
    module, function = config["applications"][0]["import_path"].split(":")
    assert getattr(importlib.import_module(module), function) is cluster.build
    assert deployment_of(config)["name"] == cluster.Replica.__name__


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_gives_a_replica_as_many_requests_as_it_takes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = cluster.read_config(path)
    for name, value in config["applications"][0]["runtime_env"]["env_vars"].items():
        monkeypatch.setenv(name, value)
    choice, deployment = settings.read_settings(), deployment_of(config)
    assert deployment["max_ongoing_requests"] == choice.max_replies + choice.max_waiting
    assert deployment["max_queued_requests"] > 0
    assert deployment["backpressure_config"]["status_code"] == 429


def test_replicas_on_one_machine_leave_room_for_an_update() -> None:
    deployment = deployment_of(cluster.read_config(CONFIGS[0]))
    assert deployment["max_surge_percent"] == 100
    at_once = 2 * deployment["num_replicas"]
    assert at_once * deployment["ray_actor_options"]["num_cpus"] <= 2  # cores


def test_ray_service_holds_what_its_schema_allows() -> None:
    manifest = yaml.safe_load(RAY_SERVICE.read_text())
    jsonschema.validate(manifest, json.loads(SCHEMA.read_text()))
    groups = manifest["spec"]["rayClusterConfig"]
    for group in (groups["headGroupSpec"], *groups["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "any"}}
        kubernetes_validate.validate(pod | group["template"], KUBERNETES, strict=True)


@pytest.mark.parametrize("wrong", ["replicas: two", "replica: 1", "groupName: 7"])
def test_schema_of_ray_service_refuses_what_is_wrong(wrong: str) -> None:
    manifest = yaml.safe_load(RAY_SERVICE.read_text())
    manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"][0] |= yaml.safe_load(wrong)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifest, json.loads(SCHEMA.read_text()))


def test_ray_service_serves_the_config_for_gpus_with_the_pinned_ray() -> None:
    manifest = yaml.safe_load(RAY_SERVICE.read_text())["spec"]
    assert yaml.safe_load(manifest["serveConfigV2"]) == cluster.read_config(CONFIGS[1])
    [pinned] = re.findall(r"ray\[serve\]==([\d.]+)", (ROOT / "pyproject.toml").read_text())
    assert manifest["rayClusterConfig"]["rayVersion"] == pinned


def test_port_and_replicas_replace_those_of_a_config() -> None:
    config = cluster.read_config(CONFIGS[0], port=9000, replicas=3)
    assert config["http_options"]["port"] == 9000
    assert deployment_of(config)["num_replicas"] == 3


@pytest.mark.parametrize(
    "content", ["", "[", "applications: 1", "http_options: {}\napplications: []", "\ud800"]
)
def test_config_that_cannot_be_used_is_refused_with_a_sentence(
    content: str, tmp_path: Path
) -> None:
    path = tmp_path / "serve.yaml"
    path.write_bytes(content.encode(errors="surrogatepass"))
    with pytest.raises(cluster.ClusterError, match=r"cannot be served: .*Start from"):
        cluster.read_config(path)


def test_replica_takes_requests_only_once_its_engine_can_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    may_load, entered = threading.Event(), threading.Event()

    def load(choice: settings.Settings, report: local.Report) -> protocol.Engine:
        assert may_load.wait(30)
        return protocol.FakeEngine()

    monkeypatch.setattr(local, "load_engine", load)

    def enter() -> None:
        with TestClient(cluster.replica_app()):
            entered.set()

    thread = threading.Thread(target=enter)
    thread.start()
    early = entered.wait(0.5)
    may_load.set()
    thread.join(30)
    assert not early
    assert entered.is_set()


def test_session_is_one_for_all_turns_and_another_for_another_question() -> None:
    first = protocol.to_conversation([], [], "What is a queue?", "Be brief.")
    second = protocol.to_conversation(["What is a queue?"], ["A line."], "Who waits in it?")
    other = protocol.to_conversation([], [], "What is a stack?")
    assert remote.session_header(first) == remote.session_header(second)
    assert remote.session_header(first) != remote.session_header(other)
    assert "queue" not in str(remote.session_header(first))


class Router(BaseHTTPRequestHandler):
    """Refuse the first request as a router does whose replicas are full, then answer."""

    protocol_version = "HTTP/1.1"
    asked: list[str]

    def do_POST(self) -> None:
        """Note the request's session; answer 429 once, then one reply."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append(self.headers["X-Session-ID"])
        busy = len(self.asked) == 1
        done = 'event: token\ndata: {"text": "Hi"}\n\nevent: done\ndata: {"reason": "stop"}\n\n'
        content = (b"Too many", done.encode())[not busy]
        self.send_response(429 if busy else 200)
        self.send_header("Retry-After", "0")
        self.send_header("Content-Type", "text/plain" if busy else "text/event-stream")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextmanager
def serve_router() -> Iterator[tuple[str, list[str]]]:
    """Serve a `Router`; yield its address and the list of sessions."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Here", (Router,), {"asked": asked}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join(30)
        server.server_close()


def test_page_waits_for_a_full_router_and_keeps_its_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serve_router() as (url, asked):
        monkeypatch.setenv("CHATBOT_BACKEND_URL", url)
        answerer = remote.RemoteAnswerer()
        pieces = answerer.stream(
            protocol.to_conversation([], [], "Hi"), protocol.Options(), protocol.Stop()
        )
        first = next(pieces)
        said = [first, *pieces]
        answerer.close()
    assert isinstance(said[0], protocol.Status)
    assert f"{url}/chat/stream is busy. Trying again" in said[0].text
    assert said[1:] == ["Hi"]
    assert len(asked) == 2
    assert asked[0] == asked[1]
