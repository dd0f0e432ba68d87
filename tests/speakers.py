"""Engines that a backend of its own process can be started with; nothing slow is imported here."""

import os
import threading
from pathlib import Path

import chatbot_arch.engine as engine


class LavishEngine(engine.FakeEngine):
    """Answer "much" with 20 MB, at once."""

    def stream(self, conversation: list, options: engine.Options, stop: threading.Event):
        if conversation[-1]["content"] != "much":
            return (yield from super().stream(conversation, options, stop))
        for number in range(5_000):
            if stop.is_set():
                return engine.Finish("cancelled", 1, number)
            yield "much" * 1_000
        return engine.Finish("stop", 1, 5_000)

    def close(self) -> None:
        print("engine closed", flush=True)


class HeldEngine(engine.FakeEngine):
    """Say a word, and the rest once a file is there."""

    def stream(self, conversation: list, options: engine.Options, stop: threading.Event):
        said = super().stream(conversation, options, stop)
        yield next(said)
        while not Path(os.environ["RELEASED"]).exists():
            if stop.wait(0.01):
                return engine.Finish("cancelled", 1, 1)
        return (yield from said)
