"""What the images and the compose file promise, as far as no container is needed."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from committed import committed_results

import chatbot_arch.measure.images as images
import chatbot_arch.measure.results as results

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
SEEN = committed_results("images")


def test_page_shows_what_was_measured() -> None:
    assert images.images_block(SEEN) in (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    assert [row["image"] for row in SEEN["rows"]] == [image.target for image in images.IMAGES]


def test_dockerfile_has_each_image_and_the_same_base() -> None:
    assert f"ARG BASE={images.BASE}\n" in DOCKERFILE
    targets = re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE)
    assert {image.target for image in images.IMAGES} <= set(targets)
    for image in images.IMAGES:
        stage = DOCKERFILE.partition(f" AS {image.target}\n")[2].partition("\nFROM ")[0]
        inherited = DOCKERFILE.partition(" AS page\n")[2].partition("\nFROM ")[0]
        assert f"HEALTH={image.ready}" in (stage if "HEALTH=" in stage else inherited)


def test_health_check_says_what_does_not_answer() -> None:
    command = [sys.executable, str(DEPLOY / "healthy.py")]
    environment = {"PORT": "1", "HEALTH": "/ready"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert re.fullmatch(r"http://127\.0\.0\.1:1/ready: .*refused.*\n", done.stderr)


def test_a_build_installs_as_this_environment_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "index" / "simple"
    index.mkdir(parents=True)
    listed = (
        f"global.extra-index-url='file://{index}\\nhttps://index.example/simple'\n"
        "global.timeout='15'\n:env:.timeout='60'\n"
    )
    values = images.read_pip_config(listed)
    assert values["timeout"] == "60"
    assert images.find_paths(values) == [index.parent]
    assert images.find_paths({"cert": str(tmp_path / "none.pem")}) == []

    def answer(*_: object, **__: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 0, stdout=listed)

    monkeypatch.setattr(subprocess, "run", answer)
    secret = f"--secret=id=pip,src={tmp_path / 'pip.conf'}"
    mount = f"--volume={index.parent}:{index.parent}:ro"
    assert images.pip_options("docker", tmp_path) == [secret]
    assert images.pip_options("podman", tmp_path) == [secret, mount]
    written = (tmp_path / "pip.conf").read_text(encoding="utf-8")
    assert f"extra-index-url = file://{index} https://index.example/simple\n" in written


def test_a_container_that_ends_early_is_said_with_its_last_line(tmp_path: Path) -> None:
    program = tmp_path / "podman"
    program.write_text("#!/bin/sh\necho The model is missing.\n", encoding="utf-8")
    program.chmod(0o755)
    container = images.Container(images.Program(str(program)), "one", "http://127.0.0.1:1", -1e9)
    with pytest.raises(results.MeasureError, match=r"one did not get ready.*The model is missing"):
        container.wait_until_ready("/ready")


def test_secrets_are_made_once_and_only_for_their_owner(tmp_path: Path) -> None:
    script = shutil.copy(DEPLOY / "make_secrets.py", tmp_path)
    outputs = [
        subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60).stdout
        for _ in range(2)
    ]
    files = sorted((tmp_path / "secrets").iterdir())
    assert [each.name for each in files] == [
        "chatbot_api_key",
        "chatbot_database_url",
        "postgres_password",
    ]
    assert outputs[0].count("is written") == outputs[1].count("stays") == 3
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    password = (tmp_path / "secrets" / "postgres_password").read_text()
    assert len(password) > 40
    assert password in (tmp_path / "secrets" / "chatbot_database_url").read_text()
