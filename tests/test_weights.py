"""The embedded model: fetched and converted whole or not at all, and failures in one sentence."""

import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import psutil
import pytest

import chatbot_arch.engines.local as local
import chatbot_arch.engines.protocol as protocol
import chatbot_arch.engines.weights as weights
import chatbot_arch.settings as settings

FETCH = str(Path(sys.executable).parent / "chatbot-fetch")
# A port that nothing listens on, in the place of every source that pip may be configured with.
NO_INDEX = {
    "PIP_CONFIG_FILE": os.devnull,
    "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
    "PIP_EXTRA_INDEX_URL": "",
    "PIP_FIND_LINKS": "",
    "PIP_RETRIES": "0",
    "PIP_DEFAULT_TIMEOUT": "2",
}


def fetch(cache: Path, **environment: str) -> subprocess.Popen[str]:
    """Start `chatbot-fetch` with a cache of its own."""
    return subprocess.Popen(
        [FETCH],
        env={**os.environ, "CHATBOT_CACHE_DIR": str(cache), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def assert_fails(process: subprocess.Popen[str], *texts: str) -> None:
    """Wait for a command to end; it must have said why, in a sentence, with a status."""
    output, _ = process.communicate(timeout=120)
    last = output.strip().splitlines()[-1]
    assert process.returncode == 1
    assert last.startswith("chatbot-fetch: ")
    assert all(text in last for text in texts), last
    assert "Traceback" not in output


def test_no_network_is_a_sentence(tmp_path: Path) -> None:
    assert_fails(fetch(tmp_path, **NO_INDEX), "could not be fetched", "Check the network")
    assert not list(tmp_path.glob("gguf*/"))


def test_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert_fails(fetch(tmp_path / "file"), "could not be written", "CHATBOT_CACHE_DIR")


def test_full_disk_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(weights.ModelError, match=r"needs 900 MB .* 1 MB are free. Make room"):
        weights.fetch_gguf(tmp_path)
    assert not list(tmp_path.glob("gguf*/"))


def test_interrupted_fetch_leaves_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        index = {"PIP_INDEX_URL": f"http://127.0.0.1:{silent.getsockname()[1]}/simple"}
        interrupted = fetch(tmp_path, **NO_INDEX | index)
        silent.settimeout(60)
        connection, _ = silent.accept()  # pip is asking, and the folder to build in is there
        pip = psutil.Process(interrupted.pid).children(recursive=True)
        assert (tmp_path / "gguf.partial").is_dir()
        interrupted.kill()
        interrupted.wait(30)
        connection.close()
    assert not (tmp_path / "gguf").exists()
    assert not psutil.wait_procs(pip, timeout=30)[1]
    assert_fails(fetch(tmp_path, **NO_INDEX), "could not be fetched")
    assert not list(tmp_path.glob("gguf*/"))


def test_interrupted_conversion_leaves_nothing_and_two_at_once_make_it(tmp_path: Path) -> None:
    cached = weights.fetch_gguf(settings.read_settings().cache_dir).parent
    shutil.copytree(cached, tmp_path / "gguf")
    goal = tmp_path / settings.EMBEDDED_MODEL
    scratch = goal.with_name(f"{goal.name}.partial")

    interrupted = fetch(tmp_path)
    deadline = time.monotonic() + 120
    while not scratch.exists() and interrupted.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    interrupted.kill()
    interrupted.communicate(timeout=30)
    assert scratch.exists()
    assert not goal.exists()

    both = [fetch(tmp_path), fetch(tmp_path)]
    outputs = [process.communicate(timeout=280)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("Writing model shards" in output for output in outputs) == 1
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == sorted(
        ["gguf", settings.EMBEDDED_MODEL]
    )
    question = protocol.to_conversation([], [], "What is two plus two?")
    with closing(local.load_engine(settings.Settings(cache_dir=tmp_path))) as made:
        assert protocol.complete(made, question, protocol.Options(max_new_tokens=8))[0].strip()


def test_damaged_cache_says_what_to_delete(tmp_path: Path) -> None:
    damaged = tmp_path / settings.EMBEDDED_MODEL
    shutil.copytree(
        weights.embedded_model(settings.read_settings().cache_dir),
        damaged,
        ignore=shutil.ignore_patterns("*.safetensors"),
    )
    (damaged / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(weights.ModelError, match=rf"Delete {damaged} to rebuild it"):
        local.load_engine(settings.Settings(cache_dir=tmp_path))


def test_corrupt_gguf_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF but not really")
    with pytest.raises(weights.ModelError, match=r"could not be loaded: .* Check CHATBOT_MODEL"):
        local.load_engine(settings.Settings(model=str(tmp_path / "model.gguf")))


def test_gguf_file_answers_like_the_converted_model() -> None:
    gguf = weights.fetch_gguf(settings.read_settings().cache_dir)
    question = protocol.to_conversation([], [], "What is a monolith?")
    with (
        closing(local.load_engine(settings.Settings(model=str(gguf)))) as direct,
        closing(local.load_engine(settings.Settings())) as converted,
    ):
        assert direct.input_ids(question) == converted.input_ids(question)
        options = protocol.Options(max_new_tokens=16)
        said = [protocol.complete(each, question, options) for each in (direct, converted)]
    assert said[0] == said[1]


def test_model_without_chat_template_is_a_sentence(tmp_path: Path) -> None:
    embedded = weights.embedded_model(settings.read_settings().cache_dir)
    for path in embedded.iterdir():
        if path.name != "chat_template.jinja":
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(weights.ModelError, match=r"is not a supported chat model\. Set"):
        local.load_engine(settings.Settings(model=str(tmp_path)))
