"""Which module may import which, and what a front end must not load."""

import ast
import shutil
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path
from zipfile import ZipFile

import pytest
from check_sync import list_files

import chatbot_arch

PACKAGE = Path(chatbot_arch.__file__).parent
ROOT = PACKAGE.parent
# Besides these, every module but guard and users may import settings, and the apps tracing.
APPS = ("utils", "monolith", "backend", "frontend", "modular", "cluster")
MAY_IMPORT = {
    "settings": set(),
    "tracing": set(),
    "engines.protocol": set(),
    "engines.weights": set(),
    "engines.garbage": set(),
    "engines.prompts": {"engines.protocol"},
    "engines.networks": set(),
    "engines.apart": set(),
    "engines.packed": set(),
    "engines.continuous": {
        "engines.protocol",
        "engines.prompts",
        "engines.networks",
        "engines.apart",
        "engines.packed",
    },
    "engines.blenderbot": {"engines.protocol", "engines.prompts", "engines.networks"},
    "engines.llamacpp": {"engines.protocol", "engines.weights", "engines.prompts"},
    "engines.openai": {
        "engines.prompts",
        "engines.protocol",
        "engines.remote",
        "engines.weights",
    },
    "engines.local": {
        "engines.garbage",
        "engines.openai",
        "engines.protocol",
        "engines.weights",
        "engines.networks",
        "engines.continuous",
        "engines.blenderbot",
        "engines.llamacpp",
    },
    "engines.identity": set(),
    "engines.remote": {"engines.garbage", "engines.identity", "engines.protocol"},
    "page.store": set(),
    "page.replies": {"engines.protocol", "page.store"},
    "page.bubbles": set(),
    "page.files": {"engines.protocol", "page.store"},
    "page.session": {
        "engines.protocol",
        "page.bubbles",
        "page.files",
        "page.replies",
        "page.store",
    },
    "page.turns": {"page.bubbles", "page.replies", "page.session", "page.store"},
    "page.sidebar": {
        "engines.protocol",
        "page.bubbles",
        "page.files",
        "page.replies",
        "page.session",
        "page.store",
        "page.turns",
    },
    "service.problems": {"engines.protocol"},
    "service.telemetry": {"engines.protocol", "service.problems"},
    "service.admission": {"engines.protocol", "service.problems", "service.telemetry"},
    "service.relay": {
        "engines.protocol",
        "service.admission",
        "service.problems",
        "service.telemetry",
    },
    "service.reply": {
        "engines.protocol",
        "service.admission",
        "service.problems",
        "service.relay",
        "service.telemetry",
    },
    "service.events": {
        "engines.protocol",
        "service.problems",
        "service.relay",
        "service.reply",
        "service.telemetry",
    },
    "service.bodies": {"service.problems"},
    "service.openai_api": {
        "engines.protocol",
        "service.bodies",
        "service.events",
        "service.problems",
        "service.relay",
        "service.reply",
        "service.telemetry",
    },
    "service.doors": {"service.problems"},
    "service.lifecycle": {"engines.protocol"},
    "measure.guard": set(),
    "measure.launch": {"measure.guard"},
    "measure.live": {"measure.launch"},
    "measure.users": set(),
    "measure.results": {"measure.launch"},
    "measure.load": {
        "engines.protocol",
        "engines.local",
        "engines.remote",
        "measure.launch",
        "measure.users",
    },
    "measure.outside": {"measure.load", "measure.users"},
    "measure.rounds": {"measure.launch", "measure.load"},
    "measure.experiments": {
        "measure.launch",
        "measure.load",
        "measure.outside",
        "measure.rounds",
        "measure.users",
    },
    "measure.events": {
        "measure.experiments",
        "measure.launch",
        "measure.load",
        "measure.results",
        "measure.rounds",
        "measure.users",
    },
    "measure.verdicts": set(),
    "measure.clusters": {
        "measure.experiments",
        "measure.launch",
        "measure.load",
        "measure.results",
        "measure.rounds",
    },
    "measure.swaps": {
        "measure.experiments",
        "measure.launch",
        "measure.load",
        "measure.outside",
        "measure.results",
        "measure.rounds",
    },
    "measure.claims": {
        "measure.clusters",
        "measure.events",
        "measure.experiments",
        "measure.swaps",
        "measure.verdicts",
    },
    "measure.evidence": {
        "measure.claims",
        "measure.events",
        "measure.results",
        "measure.experiments",
        "measure.launch",
        "measure.rounds",
        "measure.swaps",
        "measure.users",
        "measure.verdicts",
    },
    "measure.tables": {
        "measure.claims",
        "measure.evidence",
        "measure.results",
        "measure.verdicts",
    },
    "measure.figures": {
        "measure.claims",
        "measure.evidence",
        "measure.experiments",
        "measure.verdicts",
    },
    "measure.fitting": {"measure.experiments", "measure.results", "measure.tables"},
    "measure.simulate": {"measure.fitting"},
    "measure.validate": {
        "measure.experiments",
        "measure.fitting",
        "measure.load",
        "measure.rounds",
        "measure.simulate",
        "measure.users",
    },
    "measure.sizes": {"measure.figures", "measure.fitting", "measure.simulate"},
    "measure.simulation": {
        "engines.weights",
        "measure.fitting",
        "measure.publish",
        "measure.results",
        "measure.rounds",
        "measure.simulate",
        "measure.sizes",
        "measure.tables",
        "measure.validate",
    },
    "measure.choice": {
        "measure.claims",
        "measure.evidence",
        "measure.experiments",
        "measure.fitting",
        "measure.simulation",
        "measure.tables",
        "measure.verdicts",
    },
    "measure.document": {
        "measure.choice",
        "measure.claims",
        "measure.figures",
        "measure.rounds",
        "measure.simulation",
        "measure.sizes",
        "measure.tables",
        "measure.validate",
    },
    "measure.publish": {
        "measure.claims",
        "measure.results",
        "measure.swaps",
        "measure.tables",
    },
    "measure.report": {
        "engines.weights",
        "measure.claims",
        "measure.document",
        "measure.evidence",
        "measure.experiments",
        "measure.figures",
        "measure.publish",
        "measure.results",
        "measure.simulation",
        "measure.swaps",
        "measure.tables",
    },
    "measure.sabotage": {
        "measure.claims",
        "measure.evidence",
        "measure.experiments",
        "measure.launch",
        "measure.results",
        "measure.verdicts",
    },
    "measure.bench_backend": {"engines.protocol", "measure.launch", "measure.results"},
    "measure.bench_pages": {"measure.launch", "measure.users", "measure.results"},
    "measure.images": {"measure.launch", "measure.outside", "measure.publish", "measure.results"},
    "measure.clients": {"engines.protocol", "measure.results"},
    "measure.peers": {
        "engines.continuous",
        "engines.llamacpp",
        "engines.networks",
        "engines.weights",
        "measure.clients",
        "measure.launch",
        "measure.results",
    },
    "measure.in_process": {
        "engines.protocol",
        "engines.prompts",
        "engines.networks",
        "engines.continuous",
        "engines.llamacpp",
        "engines.weights",
        "measure.clients",
        "measure.guard",
        "measure.launch",
        "measure.results",
    },
    "measure.engines_report": {
        "measure.clients",
        "measure.in_process",
        "measure.peers",
        "measure.publish",
        "measure.results",
        "measure.verdicts",
    },
    "measure.bench_engines": {
        "measure.clients",
        "measure.engines_report",
        "measure.in_process",
        "measure.guard",
        "measure.launch",
        "measure.peers",
        "measure.results",
        "measure.rounds",
    },
    "utils": {
        "page.bubbles",
        "page.files",
        "page.replies",
        "page.session",
        "page.sidebar",
        "page.store",
        "page.turns",
    },
    "monolith": {"utils", "engines.protocol", "engines.local"},
    "backend": {
        "service.admission",
        "service.bodies",
        "service.doors",
        "service.events",
        "service.lifecycle",
        "service.openai_api",
        "service.problems",
        "service.reply",
        "service.telemetry",
        "engines.protocol",
        "engines.local",
    },
    "frontend": {"utils", "engines.protocol", "engines.remote"},
    "modular": {"utils", "backend"},
    "cluster": {"backend", "engines.protocol"},
}
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if path.stem not in ("__init__", "_modidx") and path.parent.name != "article"
)


def imported_modules(path: Path) -> set[str]:
    """Return the modules of this package that a file imports, at any depth."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively; `streamlit run` cannot"
            names.add(node.module or "")
    return {name.partition(".")[2] for name in names if name.startswith("chatbot_arch.")}


def test_every_module_has_its_row() -> None:
    assert set(MODULES) == set(MAY_IMPORT)


@pytest.mark.parametrize("module", MAY_IMPORT)
def test_arrows_point_one_way(module: str) -> None:
    alone = module in ("measure.guard", "measure.live", "measure.users", "settings")
    ground = set() if alone else {"settings"} if module == "tracing" else {"settings", "tracing"}
    path = PACKAGE.joinpath(*module.split(".")).with_suffix(".py")
    assert imported_modules(path) <= MAY_IMPORT[module] | ground


def test_no_arrow_runs_back_or_in_a_circle() -> None:
    TopologicalSorter(MAY_IMPORT).prepare()  # raises CycleError
    for module, others in MAY_IMPORT.items():
        wings = {name.partition(".")[0] for name in others}
        if module not in APPS:
            assert not wings & set(APPS), f"the wing's {module} imports an app"


def test_wheel_holds_every_module(tmp_path: Path) -> None:
    source = tmp_path / "source"
    files = list_files("chatbot_arch", "pyproject.toml", "README.md", "LICENSE")
    tracked = [path.relative_to(ROOT).as_posix() for path in files]
    for name in tracked:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    build = "import sys, setuptools.build_meta as b; b.build_wheel(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", build, tmp_path],
        cwd=source,
        capture_output=True,
        check=True,
        timeout=240,
    )
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in ZipFile(wheel).namelist() if name.startswith("chatbot_arch/")}
    assert packed == {name for name in tracked if name.startswith("chatbot_arch/")}
    assert len([name for name in packed if name.endswith(".py")]) > len(MODULES)


def test_frontend_loads_no_model_library() -> None:
    script = "import sys, chatbot_arch.frontend; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    loaded = set(run.stdout.split())
    assert "streamlit" in loaded
    assert not loaded & {
        "torch",
        "transformers",
        "chatbot_arch.engines.local",
        "chatbot_arch.engines.weights",
    }


def test_llamacpp_loads_no_torch() -> None:
    script = (
        "import sys, chatbot_arch.engines.local as engines, chatbot_arch.settings as settings;"
        "engines.load_engine(settings.Settings(engine='llamacpp')).close(); print(*sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    loaded = set(run.stdout.split())
    assert "xllamacpp" in loaded
    assert not loaded & {"torch", "transformers", "chatbot_arch.engines.networks"}


def test_openai_loads_no_torch() -> None:
    script = (
        "import sys, chatbot_arch.engines.openai as openai, chatbot_arch.settings as settings;"
        "openai.open_client(settings.Settings()); print(*sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    loaded = set(run.stdout.split())
    assert {"aiohttp", "openai"} <= loaded
    assert not loaded & {"torch", "transformers", "chatbot_arch.engines.networks"}
