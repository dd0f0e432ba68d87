"""Engines that a backend of its own process can be started with; nothing slow is imported here."""

import os
from pathlib import Path

import chatbot_arch.engines.protocol as protocol


class LavishEngine(protocol.FakeEngine):
    """Answer "much" with 20 MB, at once."""

    def stream(self, conversation: list, options: protocol.Options, stop: protocol.Stop):
        if conversation[-1]["content"] != "much":
            return (yield from super().stream(conversation, options, stop))
        for number in range(5_000):
            if stop.is_set():
                return protocol.Facts("cancelled", 1, number)
            yield "much" * 1_000
        return protocol.Facts("stop", 1, 5_000)

    def close(self) -> None:
        print("engine closed", flush=True)


class HeldEngine(protocol.FakeEngine):
    """Say a word, and the rest once a file is there."""

    def stream(self, conversation: list, options: protocol.Options, stop: protocol.Stop):
        said = super().stream(conversation, options, stop)
        yield next(said)
        while not Path(os.environ["RELEASED"]).exists():
            if stop.wait(0.01):
                return protocol.Facts("cancelled", 1, 1)
        return (yield from said)
