"""The bits of the weights: the same at each start of a machine, as set, and told."""

import itertools
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import torch
import transformers
from conftest import serve_backend

import chatbot_arch.engines.local as local
import chatbot_arch.engines.networks as networks
import chatbot_arch.engines.protocol as protocol
import chatbot_arch.engines.weights as weights
import chatbot_arch.frontend as frontend
import chatbot_arch.measure.experiments as experiments
import chatbot_arch.settings as settings

TINY = str(Path(__file__).parent / "blenderbot-tiny" / "model")
CPU = torch.device("cpu")


def clock(step_s: Callable[[int], float]) -> Callable[[], float]:
    """Return a clock that goes on by `step_s(n)` at its n-th reading."""
    times = itertools.accumulate(step_s(number) for number in itertools.count())
    return lambda: next(times)


def test_dtype_is_the_same_however_busy_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    source = weights.locate_model(settings.read_settings())
    dtypes = []
    for step_s in (
        lambda n: 1.0 + n,
        lambda n: 1.0 / (1 + n),
    ):  # what comes later is slower, faster
        steady = SimpleNamespace(perf_counter=clock(step_s), monotonic=time.monotonic)
        monkeypatch.setattr(networks, "time", steady, raising=False)
        network, _ = networks.load_transformers(source)
        dtypes.append(network.dtype)
    assert dtypes[0] == dtypes[1]


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True, "avx512_f": True}, torch.float32),
        ({"avx2": True, "avx512_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
        ({"neon": True, "bf16": False}, torch.float32),
        ({"neon": True, "bf16": True}, torch.bfloat16),
        ({}, torch.float32),
    ],
)
def test_dtype_is_what_the_processor_has(
    capabilities: dict[str, bool], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert networks.native_dtype(CPU) == expected


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("auto", "float32"), ("bfloat16", "bfloat16"), ("float32", "float32")],
)
def test_dtype_that_is_set_is_loaded_and_told(dtype: str, expected: str) -> None:
    with closing(local.load_engine(settings.Settings(model=TINY, dtype=dtype))) as asked:
        assert asked.dtype == expected
        assert asked._network.dtype == getattr(torch, expected)


def test_dtype_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATBOT_DTYPE", "int3")
    with pytest.raises(settings.SettingsError, match="CHATBOT_DTYPE='int3'"):
        settings.read_settings()


def test_gguf_file_tells_its_format() -> None:
    choice = settings.Settings(engine="llamacpp")
    with closing(local.load_engine(choice)) as asked:
        assert asked.dtype == "Q8_0"


def test_backend_and_page_tell_the_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATBOT_ENGINE", "fake")
    monkeypatch.setattr(protocol.FakeEngine, "dtype", "bfloat16")
    with serve_backend() as url:
        monkeypatch.setenv("CHATBOT_BACKEND_URL", url)
        while not (answer := httpx.get(f"{url}/ready", trust_env=False)).is_success:
            pass
        assert answer.json()["dtype"] == "bfloat16"
        assert str(frontend.describe_model()) == "known-text on fake, bfloat16"


def test_article_and_ours_are_measured_in_one_dtype() -> None:
    folder = weights.embedded_model(settings.read_settings().cache_dir)
    pipeline = transformers.pipeline("text-generation", folder)  # as in the article's files
    assert str(pipeline.model.dtype) == f"torch.{experiments.ARTICLE_DTYPE['CHATBOT_DTYPE']}"
