"""Which module may import which, and what a front end must not load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import chatbot_arch.guard as guard

PACKAGE = Path(guard.__file__).parent
# Besides these, every module but guard and users may import settings.
MAY_IMPORT = {
    "settings": set(),
    "store": set(),
    "replies": {"store"},
    "bubbles": set(),
    "exports": {"store"},
    "utils": {"bubbles", "exports", "replies", "store"},
    "model": set(),
    "engine": set(),
    "prompts": {"engine"},
    "batching": {"engine", "prompts"},
    "llamacpp": {"engine", "model", "prompts"},
    "engines": {"engine", "model", "batching", "llamacpp"},
    "monolith": {"utils", "replies", "engine", "engines"},
    "tracing": set(),
    "problems": {"engine"},
    "telemetry": {"problems"},
    "admission": {"engine", "problems", "telemetry"},
    "bodies": {"problems"},
    "openai_api": {"admission", "bodies", "engine", "problems"},
    "backend": {
        "admission",
        "bodies",
        "engine",
        "engines",
        "openai_api",
        "problems",
        "telemetry",
        "tracing",
    },
    "frontend": {"utils", "replies", "tracing"},
    "guard": set(),
    "launch": {"guard"},
    "users": set(),
    "compare": {"launch", "model", "users"},
    "load": {"engine", "launch", "compare"},
    "bench": {"engine", "prompts", "batching", "llamacpp", "model", "launch", "compare"},
}


def imported_modules(path: Path) -> set[str]:
    """Return the modules of this package that a file imports, at any depth."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively; `streamlit run` cannot"
            names.add(node.module or "")
    return {name.split(".")[1] for name in names if name.startswith("chatbot_arch.")}


def test_every_module_has_its_row() -> None:
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "_modidx"}
    assert modules == set(MAY_IMPORT)


@pytest.mark.parametrize("module", MAY_IMPORT)
def test_arrows_point_one_way(module: str) -> None:
    allowed = MAY_IMPORT[module] | ({"settings"} if module not in ("guard", "users") else set())
    assert imported_modules(PACKAGE / f"{module}.py") <= allowed


def test_frontend_loads_no_model_library() -> None:
    script = "import sys, chatbot_arch.frontend; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    loaded = set(run.stdout.split())
    assert "streamlit" in loaded
    assert not loaded & {"torch", "transformers", "chatbot_arch.engine", "chatbot_arch.model"}


def test_llamacpp_loads_no_torch() -> None:
    script = (
        "import sys, chatbot_arch.engines as engines, chatbot_arch.settings as settings;"
        "engines.load_engine(settings.Settings(engine='llamacpp')).close(); print(*sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    loaded = set(run.stdout.split())
    assert "xllamacpp" in loaded
    assert not loaded & {"torch", "transformers", "chatbot_arch.batching"}
