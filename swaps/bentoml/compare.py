"""Ask the backend on uvicorn and as a BentoML service in turns, and print what each one took.

From the repository's root, with the tutorial's Python: `.venv/bin/python swaps/bentoml/compare.py`.
Both run in BentoML's environment, with the engine that needs no model and one word every 0.02 s.
"""

import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

import chatbot_arch.measure.launch as launch
import chatbot_arch.measure.load as load

FOLDER = Path(__file__).parent
PROGRAMS = FOLDER / ".venv" / "bin"
ROUNDS, TIMES, WORDS, USERS = 10, 2, 50, (1, 16)  # the first round is not counted
BODY = {"user_input": "/echo" + " w" * WORDS}
COMMANDS = {
    "uvicorn": [PROGRAMS / "python", "-m", "uvicorn", "chatbot_arch.backend:app"],
    "BentoML": [PROGRAMS / "bentoml", "serve", "service:Chatbot", "--working-dir", FOLDER],
}
MEASURES = ("first word, ms", "tokens/s", "CPU/token, µs")


def processes(server: launch.Server) -> set[psutil.Process]:
    """Return a server's processes; BentoML's worker is in a session of its own."""
    found = server.processes()
    return {*found, *(child for each in found for child in each.children(recursive=True))}


def start(name: str, home: str) -> tuple[launch.Server, float]:
    """Start a server; return it and the seconds until it was ready."""
    port, began = launch.find_free_port(), time.perf_counter()
    where = ["--host", launch.HOST, "--port", str(port)]
    given = {"CHATBOT_ENGINE": "fake", "CHATBOT_FAKE_TOKEN_S": "0.02"}
    given |= {"BENTOML_DO_NOT_TRACK": "true", "BENTOML_HOME": home}
    command = [*map(str, COMMANDS[name]), *where]
    url, grace_s = f"http://{launch.HOST}:{port}", launch.backend_grace_s(given)
    server = launch.start_server(name, command, url, "/ready", given, grace_s)
    launch.wait_until_ready(server, 120)
    return server, time.perf_counter() - began


def ask(server: launch.Server, users: int) -> tuple[float, ...]:
    """Let users ask at once some times; return a value for each of `MEASURES`."""
    tokens, running = TIMES * users * WORDS, list(processes(server))
    before_s = sum(sum(each.cpu_times()[:2]) for each in running)
    asked = load.ask_backends([server.url], [BODY] * users, TIMES)
    cpu_s = sum(sum(each.cpu_times()[:2]) for each in running) - before_s
    return asked["first_s"] * 1e3, tokens / asked["all_s"], cpu_s / tokens * 1e6


def show(values: list[float]) -> str:
    """Return the median of some values, and the smallest and the largest."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


def main() -> None:
    """Print one row for each measure, then start and memory."""
    if not PROGRAMS.exists():
        sys.exit(
            f"There is no environment in {PROGRAMS.parent}. README.md here says how to make it."
        )
    print(f"n = {ROUNDS - 1}, medians (smallest to largest), {psutil.cpu_count()} cores")
    with ExitStack() as stack:
        home = stack.enter_context(TemporaryDirectory())
        servers, ready_s = {}, {}
        for name in COMMANDS:
            servers[name], ready_s[name] = start(name, home)
            stack.callback(launch.stop_server, servers[name])
        for users in USERS:
            seen: dict[str, list[tuple[float, ...]]] = {name: [] for name in servers}
            for number in range(ROUNDS):
                for name in list(servers)[:: 1 if number % 2 else -1]:
                    seen[name].append(ask(servers[name], users))
            for place, measure in enumerate(MEASURES):
                pairs = zip(*(each[1:] for each in seen.values()), strict=True)
                later = show([new[place] - old[place] for old, new in pairs])
                each = [show([values[place] for values in seen[name][1:]]) for name in servers]
                print(f"| {users} | {measure} | {' | '.join(each)} | {later} |", flush=True)
        for name, server in servers.items():
            memory_mb = sum(map(launch.process_memory_mb, processes(server)))
            print(f"{name}: ready after {ready_s[name]:.1f} s, {memory_mb:.0f} MB")


if __name__ == "__main__":
    main()
