"""Cloud Run: the service files against Google's schema, the script, and the images as there."""

import json
import re
import shutil
import subprocess
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cloudrun_costs
import jsonschema
import pytest
import requests
import test_images
import yaml
from check_sync import ROOT
from cloudrun import HEADER, google
from committed import committed_results

import chatbot_arch.measure.images as images
import chatbot_arch.measure.outside as outside
import chatbot_arch.service.lifecycle as lifecycle
import chatbot_arch.settings as settings

FOLDER = ROOT / "deploy" / "cloudrun"
SCRIPT = FOLDER / "deploy.sh"
SCHEMA = json.loads(Path(__file__).with_name("cloudrun-schema.json").read_text(encoding="utf-8"))
FILES = sorted(FOLDER.glob("*.yaml"))
GIB = 2**30
UNITS = {"Mi": 2**20, "Gi": GIB}
MARKS = ("database", "cloudsql", "network")


def read(name: str) -> dict[str, Any]:
    """Return a service's file with all its lines."""
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))


def revision(service: dict[str, Any]) -> dict[str, Any]:
    return service["spec"]["template"]["spec"]


def container(service: dict[str, Any]) -> dict[str, Any]:
    [only] = revision(service)["containers"]
    return only


def revision_annotations(service: dict[str, Any]) -> dict[str, str]:
    return service["spec"]["template"]["metadata"]["annotations"]


def variables(service: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each.get("value", "") for each in container(service)["env"]}


def memory_bytes(service: dict[str, Any]) -> int:
    text = container(service)["resources"]["limits"]["memory"]
    return int(text[:-2]) * UNITS[text[-2:]]


def measured() -> dict[str, dict[str, Any]]:
    """Return what was measured of each image."""
    return {row["image"]: row for row in committed_results("images")["rows"]}


# The files


def test_each_service_has_its_file() -> None:
    assert [path.stem for path in FILES] == ["backend", "frontend", "monolith"]


@pytest.mark.parametrize("dropped", [(), *[(mark,) for mark in MARKS], MARKS], ids=str)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_file_holds_what_cloud_run_allows(path: Path, dropped: tuple[str, ...]) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if not line.endswith(tuple(f"# {mark}" for mark in dropped))]
    service = yaml.safe_load("\n".join(kept))
    jsonschema.validate(service, SCHEMA)
    assert service["metadata"]["name"] == f"chatbot-{path.stem}"


def put(service: dict[str, Any], *keys: str, value: object) -> None:
    """Set a field of the revision's template, anywhere in it."""
    at: Any = service["spec"]["template"]
    for key in keys[:-1]:
        at = at[int(key)] if key.isdigit() else at[key]
    at[keys[-1]] = value


WRONG = {
    "annotation": (("metadata", "annotations", "run.googleapis.com/session-affinity"), "true"),
    "no text": (("metadata", "annotations", "run.googleapis.com/sessionAffinity"), True),
    "of a service": (("metadata", "annotations", "run.googleapis.com/ingress"), "all"),
    "field": (("spec", "timeout"), 3600),
    "kind": (("spec", "containerConcurrency"), "80"),
    "container": (("spec", "containers", "0", "environment"), []),
    "probe": (("spec", "containers", "0", "startupProbe", "path"), "/"),
}


@pytest.mark.parametrize(("keys", "value"), WRONG.values(), ids=WRONG)
def test_what_cloud_run_does_not_know_is_refused(keys: tuple[str, ...], value: object) -> None:
    service = read("frontend")
    put(service, *keys, value=value)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(service, SCHEMA)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_file_names_only_settings_that_exist(path: Path) -> None:
    known = {f"CHATBOT_{name.upper()}" for name in settings.Settings.model_fields}
    assert set(variables(read(path.stem))) <= known


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_memory_is_half_as_much_again_as_was_measured(path: Path) -> None:
    need = measured()[path.stem]["memory_mb"] * 1e6
    assert memory_bytes(read(path.stem)) >= max(1.5 * need, 512 * 2**20)  # gen2 takes no less


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_start_is_waited_for_longer_than_it_took(path: Path) -> None:
    probe = container(read(path.stem))["startupProbe"]
    waits_s = probe["periodSeconds"] * probe["failureThreshold"]
    assert 10 * measured()[path.stem]["ready_s"] <= waits_s <= 240
    assert probe["timeoutSeconds"] <= probe["periodSeconds"]
    [image] = [each for each in images.IMAGES if each.target == path.stem]
    assert probe["httpGet"] == {"path": image.ready}


def test_backend_takes_as_many_requests_as_it_has_room_for() -> None:
    backend, choice = read("backend"), settings.Settings()
    room = choice.max_replies + choice.max_waiting
    assert revision(backend)["containerConcurrency"] == room
    longest_s = choice.waiting_timeout_s + choice.reply_timeout_s
    assert revision(backend)["timeoutSeconds"] > longest_s


def test_backend_ends_within_what_cloud_run_grants() -> None:
    ending_s = float(variables(read("backend"))["CHATBOT_ENDING_TIMEOUT_S"])
    assert ending_s + lifecycle.READING_S < images.STOP_TIMEOUT_S


@pytest.mark.parametrize("name", ["frontend", "monolith"])
def test_page_keeps_its_socket_its_session_and_its_threads(name: str) -> None:
    page = read(name)
    assert revision(page)["timeoutSeconds"] == 3600
    said = revision_annotations(page)
    assert said["run.googleapis.com/sessionAffinity"] == "true"
    assert said["run.googleapis.com/cpu-throttling"] == "false"


@pytest.mark.parametrize("name", ["backend", "monolith"])
def test_what_holds_the_model_starts_fast_and_stays(name: str) -> None:
    said = revision_annotations(read(name))
    assert said["run.googleapis.com/startup-cpu-boost"] == "true"
    assert int(said["autoscaling.knative.dev/minScale"]) >= 1


def test_page_says_what_prices_and_measurements_give() -> None:
    page = cloudrun_costs.PAGE.read_text(encoding="utf-8")
    said = page.partition("<!-- costs -->\n")[2].partition("\n<!-- end of costs -->")[0].strip()
    claims, started = committed_results("claims")["claims"], committed_results("images")["rows"]
    assert said == cloudrun_costs.costs_block(claims, started)


# The script

FAKE = """#!/bin/bash
printf '%s\\0' "${0##*/}" "$@" >> "$FAKE_LOG"; printf '\\n' >> "$FAKE_LOG"
for word in "$@"; do
    case $word in
        *.yaml) cp "$word" "$FAKE_LOG.${word##*/}";;
        *.json) cp "$word" "$FAKE_LOG.json";;
    esac
done
case "${0##*/} $*" in
    *"--data-file=-"*) cat > "$FAKE_LOG.secret";;
    *"status.url"*) echo "https://${*: -3:1}-1.europe-west1.run.app";;
    *"image inspect"*) echo "europe-west1-docker.pkg.dev/any@sha256:$(printf '%064d' 7)";;
esac
[[ -z $FAKE_FAILS || ! "$*" =~ $FAKE_FAILS ]]
"""
TOOLS = ("bash", "base64", "cp", "cat", "dirname", "head", "mktemp", "printf", "rm", "sed", "tr")


class Deployed:
    """What deploy.sh did with programs that only note their arguments."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.programs = folder, folder / "bin"
        self.log = folder / "log"
        self.programs.mkdir()
        for tool in TOOLS:
            if found := shutil.which(tool):
                (self.programs / tool).symlink_to(found)
        for name in ("gcloud", "docker"):
            (self.programs / name).write_text(FAKE)
            (self.programs / name).chmod(0o755)

    def run(
        self, *arguments: str, fails: str = "", **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run the script; `fails` is a pattern of the commands that fail."""
        self.log.unlink(missing_ok=True)
        environment = {"PATH": str(self.programs), "FAKE_LOG": str(self.log), "FAKE_FAILS": fails}
        return subprocess.run(
            [SCRIPT, *arguments],
            env=environment | {"TMPDIR": str(self.folder)} | variables,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def calls(self) -> list[str]:
        """Return the commands in order, each as one text."""
        lines = self.log.read_text().replace("\0\n", "\n").splitlines()
        return [
            line.replace("\0", " ").replace("--project=my-project --quiet ", "") for line in lines
        ]

    def service(self, name: str) -> dict[str, Any]:
        """Return a service's file as it was deployed."""
        return yaml.safe_load(Path(f"{self.log}.{name}.yaml").read_text())


@pytest.fixture
def deployed(tmp_path: Path) -> Deployed:
    return Deployed(tmp_path)


GIVEN = ("my-project", "europe-west1")
BACKEND_URL = "https://chatbot-backend-1.europe-west1.run.app"
NOTHING_YET = "describe"  # all commands that look for something fail


def position(calls: list[str], pattern: str) -> int:
    """Return where the only command that matches stands."""
    [found] = [number for number, call in enumerate(calls) if re.search(pattern, call)]
    return found


def test_microservices_are_deployed_in_order(deployed: Deployed) -> None:
    done = deployed.run(*GIVEN, "microservices")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == BACKEND_URL.replace("backend", "frontend")
    calls = deployed.calls()
    order = [
        "^docker build .*--target=backend",
        "^docker push .*/chatbot/backend$",
        "^gcloud run services replace .*backend.yaml",
        "^gcloud run services set-iam-policy chatbot-backend",
        "^gcloud run services replace .*frontend.yaml",
        "chatbot-frontend .*run.invoker --member=allUsers",
    ]
    positions = [position(calls, pattern) for pattern in order]
    assert positions == sorted(positions)
    for name in ("backend", "frontend"):
        service = deployed.service(name)
        jsonschema.validate(service, SCHEMA)
        assert "${" not in json.dumps(service)
        assert container(service)["image"].endswith("7")
    assert variables(deployed.service("frontend"))["CHATBOT_BACKEND_URL"] == BACKEND_URL


def test_only_the_front_end_may_invoke_the_backend(deployed: Deployed) -> None:
    deployed.run(*GIVEN, "microservices")
    policy = json.loads(Path(f"{deployed.log}.json").read_text())
    member = "serviceAccount:chatbot-frontend@my-project.iam.gserviceaccount.com"
    assert policy == {"bindings": [{"role": "roles/run.invoker", "members": [member]}]}
    public = [call for call in deployed.calls() if "allUsers" in call]
    assert len(public) == 1
    assert "chatbot-frontend" in public[0]
    assert revision(deployed.service("frontend"))["serviceAccountName"] == member[15:]


def test_monolith_is_one_service(deployed: Deployed) -> None:
    done = deployed.run(*GIVEN, "monolith")
    assert done.returncode == 0, done.stderr
    assert not [call for call in deployed.calls() if "backend" in call or "frontend" in call]
    jsonschema.validate(deployed.service("monolith"), SCHEMA)


def test_what_exists_is_not_made_again(deployed: Deployed) -> None:
    makes = r"accounts create|repositories create|secrets create"
    deployed.run(*GIVEN, "microservices", fails=NOTHING_YET)
    assert len([call for call in deployed.calls() if re.search(makes, call)]) == 4
    assert len(Path(f"{deployed.log}.secret").read_text()) > 40
    deployed.run(*GIVEN, "microservices")
    assert not [call for call in deployed.calls() if re.search(makes, call)]


@pytest.mark.parametrize("shape", ["monolith", "microservices"])
def test_conversations_without_a_database_are_said_to_be_lost(
    deployed: Deployed, shape: str
) -> None:
    done = deployed.run(*GIVEN, shape, fails="secrets describe chatbot-database-url")
    page = "monolith" if shape == "monolith" else "frontend"
    assert "lost with the instance" in done.stdout
    assert "DATABASE" not in json.dumps(deployed.service(page))
    assert "lost" not in deployed.run(*GIVEN, shape).stdout
    assert "CHATBOT_DATABASE_URL" in variables(deployed.service(page))


def test_network_closes_the_backend_to_the_internet(deployed: Deployed) -> None:
    ingress = "run.googleapis.com/ingress"
    deployed.run(*GIVEN, "microservices")
    assert deployed.service("backend")["metadata"]["annotations"][ingress] == "all"
    assert "vpc" not in json.dumps(deployed.service("frontend"))
    done = deployed.run(*GIVEN, "microservices", NETWORK="default")
    assert done.returncode == 0, done.stderr
    assert deployed.service("backend")["metadata"]["annotations"][ingress] == "internal"
    said = revision_annotations(deployed.service("frontend"))
    [interface] = json.loads(said["run.googleapis.com/network-interfaces"])
    assert interface == {"network": "default", "subnetwork": "default"}


def test_database_of_cloud_sql_is_attached(deployed: Deployed) -> None:
    deployed.run(*GIVEN, "monolith", CLOUDSQL="my-project:europe-west1:chats")
    said = revision_annotations(deployed.service("monolith"))
    assert said["run.googleapis.com/cloudsql-instances"] == "my-project:europe-west1:chats"
    assert [call for call in deployed.calls() if "roles/cloudsql.client" in call]


REFUSED = {
    "nothing": ((), "give a project"),
    "shape": ((*GIVEN, "modular"), "'modular' is not a shape"),
    "project": (("My Project", "europe-west1", "monolith"), "is not the id of a project"),
    "region": (("my-project", "a|b", "monolith"), "is not a region"),
}


@pytest.mark.parametrize(("arguments", "said"), REFUSED.values(), ids=REFUSED)
def test_bad_arguments_are_a_sentence(
    deployed: Deployed, arguments: tuple[str, ...], said: str
) -> None:
    done = deployed.run(*arguments)
    assert done.returncode == 1
    assert said in done.stderr
    assert not deployed.log.exists()


@pytest.mark.parametrize("program", ["gcloud", "docker"])
def test_missing_program_is_a_sentence(deployed: Deployed, program: str) -> None:
    (deployed.programs / program).unlink()
    done = deployed.run(*GIVEN, "monolith")
    assert done.returncode == 1
    assert f"{program} is not here. Install" in done.stderr
    assert not deployed.log.exists()


def test_step_that_fails_ends_the_script(deployed: Deployed) -> None:
    done = deployed.run(*GIVEN, "microservices", fails="^push")
    assert done.returncode != 0
    assert not [call for call in deployed.calls() if "services replace" in call]
    assert not list(deployed.folder.glob("tmp.*"))


# The images, in the environment that Cloud Run gives them; `make test-more`.

program, base, built = test_images.program, test_images.base, test_images.built
FAKE_ENGINE = {"CHATBOT_ENGINE": "fake", "CHATBOT_FAKE_TOKEN_S": "0.05"}
KEY = {"CHATBOT_API_KEY": "our-key"}
KILLED = 137  # its status after SIGKILL
ENDED = "--format={{.State.ExitCode}}"
ASK = """
import chatbot_arch.engines.protocol as protocol, chatbot_arch.engines.remote as remote
talk = protocol.to_conversation([], [], "Hi")
try:
    for piece in remote.RemoteAnswerer().stream(talk, protocol.Options(), protocol.Stop()):
        print(piece)
except remote.BackendError as error:
    print(error)
"""


def cloud_environment(name: str) -> dict[str, str]:
    """Return what a service's file and Cloud Run itself set, without what is not here."""
    said = {key: value for key, value in variables(read(name)).items() if value}
    of_google = {"K_SERVICE": f"chatbot-{name}", "K_REVISION": f"chatbot-{name}-00001-abc"}
    return said | of_google | {"K_CONFIGURATION": f"chatbot-{name}"}


@pytest.mark.more
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("image", [images.MONOLITH, images.FRONTEND], ids=lambda each: each.target)
def test_page_answers_and_ends_as_on_cloud_run(built: images.Program, image: images.Image) -> None:
    with images.running(built, image, cloud_environment(image.target) | FAKE_ENGINE) as there:
        there.wait_until_ready(image.ready)
        assert "Streamlit" in requests.get(there.url, timeout=30).text
        assert there.stop() < images.STOP_TIMEOUT_S
        assert int(built.call("inspect", ENDED, there.name)) != KILLED


@pytest.mark.more
@pytest.mark.timeout(1800)
def test_backend_ends_in_ten_seconds_though_a_reply_takes_longer(built: images.Program) -> None:
    environment = cloud_environment("backend") | FAKE_ENGINE | KEY
    with images.running(built, images.BACKEND, environment) as there:
        there.wait_until_ready(images.BACKEND.ready)
        question = {"user_input": "/echo " + "word " * 1000}  # 50 s
        headers = {"Authorization": "Bearer our-key"}
        url = f"{there.url}/chat/stream"
        with requests.post(url, json=question, headers=headers, stream=True, timeout=60) as answer:
            lines = answer.iter_lines(decode_unicode=True)
            assert "event: token" in (next(lines), next(lines), next(lines))
            took: list[float] = []
            stopping = threading.Thread(target=lambda: took.append(there.stop()))
            stopping.start()
            events = [line for line in lines if line.startswith("event: ")]
        stopping.join(60)
        assert events[-1] in ("event: done", "event: error")
        ending_s = float(environment["CHATBOT_ENDING_TIMEOUT_S"])
        assert ending_s - 1 < took[0] < images.STOP_TIMEOUT_S
        assert int(built.call("inspect", ENDED, there.name)) == 0


@pytest.mark.more
@pytest.mark.timeout(1800)
def test_front_end_passes_the_door_with_its_token(built: images.Program) -> None:
    quick = FAKE_ENGINE | {"CHATBOT_FAKE_TOKEN_S": "0.01"}
    with ExitStack() as stack:
        enter = stack.enter_context
        environment = cloud_environment("backend") | quick | KEY
        backend = enter(images.running(built, images.BACKEND, environment))
        backend.wait_until_ready(images.BACKEND.ready)
        metadata, door = enter(google(backend.url))
        host = metadata.url.removeprefix("http://")
        environment = cloud_environment("frontend") | KEY
        environment |= {"CHATBOT_BACKEND_URL": door.url}
        environment |= {"GCE_METADATA_HOST": host, "GCE_METADATA_IP": host}
        front = enter(images.running(built, images.FRONTEND, environment))
        front.wait_until_ready(images.FRONTEND.ready)
        with outside.BrowserUser(front.url) as user:
            assert "one two three" in user.ask("/echo one two three").text
        assert not door.refused
        assert len(metadata.tokens) == 1
        for headers in door.seen:
            assert metadata.tokens[headers[HEADER].removeprefix("Bearer ")] == door.url
            assert headers["Authorization"] == "Bearer our-key"
        no_identity = ("exec", "--env=CHATBOT_BACKEND_IDENTITY=", front.name)
        assert "closed to this page" in built.call(*no_identity, "python3", "-c", ASK)
        assert door.refused == 1
