"""The backend as a BentoML service, with the contract's routes."""

import re

import bentoml
from prometheus_client import generate_latest

import chatbot_arch.backend as backend
import chatbot_arch.engines.protocol as protocol
import chatbot_arch.service.lifecycle as lifecycle
import chatbot_arch.service.reply as reply
import chatbot_arch.service.telemetry as telemetry
import chatbot_arch.settings as settings

app = backend.create_app()
try:
    choice = settings.read_settings()
except settings.ChatbotError as error:
    lifecycle.give_up(error)

# BentoML answers 504 if nothing was sent for so long; the backend's own limits end before.
TIMEOUT_S = choice.waiting_timeout_s + choice.reply_timeout_s + 2 * reply.READING_GRACE_S
OURS = re.compile(r"^(?:# \w+ )?chatbot_.*\n", re.MULTILINE)


def find_problem() -> settings.ChatbotError | None:
    """Return why the engine cannot answer, if it cannot."""
    try:
        app.state.answerer.describe()
    except settings.ChatbotError as error:
        return error
    return None


@bentoml.service(traffic={"timeout": TIMEOUT_S})
@bentoml.asgi_app(app)
class Chatbot:
    """The backend's routes, and what makes BentoML's probes and metrics agree with them."""

    def __is_ready__(self) -> bool:
        """Return whether the engine can answer, for `/readyz`."""
        return find_problem() is None

    def __is_alive__(self) -> bool:
        """Return whether waiting is of use, for `/livez` and `/healthz`."""
        return isinstance(find_problem(), protocol.NotReadyError | None)

    def __metrics__(self, known: str) -> str:
        """Return BentoML's counts, and ours without the process numbers that it adds."""
        return OURS.sub("", known) + generate_latest(telemetry.REGISTRY).decode()
