"""The same engine in BentoML's own way, to compare: `bentoml serve native:Native`."""

from collections.abc import Generator

import bentoml

import chatbot_arch.engines.local as local
import chatbot_arch.engines.protocol as protocol
import chatbot_arch.settings as settings


@bentoml.service
class Native:
    """Two methods that BentoML turns into routes: the whole reply, and the reply in pieces."""

    def __init__(self) -> None:
        self.answerer = local.LocalAnswerer(settings.read_settings(), renews=False)
        self.answerer.loading.engine.result()

    @bentoml.api
    def stream(self, user_input: str) -> Generator[str, None, None]:
        """Yield the reply in pieces."""
        asked = protocol.to_conversation([], [], user_input)
        for piece in self.answerer.stream(asked, protocol.Options(), protocol.Stop()):
            if isinstance(piece, str):
                yield piece

    @bentoml.api
    def chat(self, user_input: str) -> str:
        """Return the reply."""
        said: list[str] = []
        asked = protocol.to_conversation([], [], user_input)
        protocol.speak(
            self.answerer.stream(asked, protocol.Options(), protocol.Stop()), said.append
        )
        return "".join(said)

    @bentoml.on_shutdown
    def close(self) -> None:
        """Close the engine."""
        self.answerer.close()
