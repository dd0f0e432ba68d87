"""One way to install: uv is handed what pip is configured with, and pip does what uv cannot."""

import importlib.util
import sys
from pathlib import Path

import pytest
from committed import committed_results

ROOT = Path(__file__).parent.parent
SPEC = importlib.util.spec_from_file_location("install", ROOT / "deploy" / "install.py")
install = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(install)

CONFIGURED = [
    ":env:.extra-index-url='https://c.example/simple'",
    "download.find-links='/not/for/install'",
    "global.extra-index-url='https://a.example/simple\\nhttps://b.example/simple'",
    "global.find-links='/wheels /more'",
    "global.quiet='1'",
    "install.index-url='https://main.example/simple'",
]
# A program that writes what it was given to a file, and ends with a status.
STAND_IN = """#!{python}
import json, os, sys
names = ("UV_INDEX_STRATEGY", "UV_FIND_LINKS")
given = {{"arguments": sys.argv[1:], **{{name: os.environ.get(name) for name in names}}}}
with open({said!r}, "a") as file:
    file.write(json.dumps(given) + "\\n")
sys.exit({status})
"""


def test_uv_gets_what_pip_would_use() -> None:
    options = install.read_pip_options(CONFIGURED)
    assert install.to_uv(options) == {
        "UV_DEFAULT_INDEX": "https://main.example/simple",
        "UV_EXTRA_INDEX_URL": "https://c.example/simple",  # a variable wins over a file
        "UV_FIND_LINKS": "/wheels,/more",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }
    several = install.to_uv(install.read_pip_options(CONFIGURED[1:3]))
    assert several["UV_EXTRA_INDEX_URL"] == "https://a.example/simple https://b.example/simple"


def stand_in(path: Path, said: Path, status: int) -> str:
    """Write a program in the place of an installer; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(STAND_IN.format(python=sys.executable, said=str(said), status=status))
    path.chmod(0o755)
    return str(path)


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-ins are POSIX scripts")
@pytest.mark.parametrize("status", [0, 2], ids=["uv installs", "uv fails"])
def test_pip_does_what_uv_cannot(
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    by_uv, by_pip = tmp_path / "by_uv", tmp_path / "by_pip"
    monkeypatch.setenv("UV", stand_in(tmp_path / "uv", by_uv, status))
    monkeypatch.setenv("UV_FIND_LINKS", "my own")
    stand_in(tmp_path / "venv" / "bin" / "python", by_pip, 0)
    assert install.install("dev", tmp_path / "venv") == 0
    given = by_uv.read_text()
    assert "unsafe-best-match" in given
    assert '"UV_FIND_LINKS": "my own"' in given
    assert by_pip.exists() == bool(status)
    assert ("pip does" in capfd.readouterr().err) == bool(status)
    for wanted in (given, *(by_pip.read_text().splitlines()[-1:] if status else ())):
        assert f"{ROOT}[dev]" in wanted
        assert "constraints.txt" in wanted


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-ins are POSIX scripts")
def test_an_empty_variable_takes_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_uv, by_pip = tmp_path / "by_uv", tmp_path / "by_pip"
    stand_in(tmp_path / "uv", by_uv, 0)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("UV", "")
    stand_in(tmp_path / "venv" / "bin" / "python", by_pip, 3)
    assert install.install("dev", tmp_path / "venv") == 3
    assert not by_uv.exists()


def test_texts_say_what_was_measured() -> None:
    rounds = committed_results("install")["rounds"]
    text = " ".join((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split())

    def spread(installer: str, step: str) -> str:
        values = [each[step] for each in rounds if each["installer"] == installer]
        assert len(values) == 3
        return f"{min(values):.0f} to {max(values):.0f} s"

    pip, uv = spread("pip", "page_s"), spread("uv", "page_s")
    assert f"its page after {pip} with pip and after {uv} with uv, three times each" in text
    pip, uv = spread("pip", "answered_s"), spread("uv", "answered_s")
    assert f"a first reply was whole after {pip} and {uv}" in text
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    pip, uv = spread("pip", "page_s"), spread("uv", "page_s")
    assert f"after {uv} with uv, {pip} with pip" in readme
