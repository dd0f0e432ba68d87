from fastapi import FastAPI
from pydantic import BaseModel
from transformers import pipeline

import chatbot_arch.engines.protocol as protocol
import chatbot_arch.engines.weights as weights
import chatbot_arch.settings as settings

app = FastAPI()
chatbot = pipeline("text-generation", weights.embedded_model(settings.read_settings().cache_dir))


class ConversationHistory(BaseModel):
    past_user_inputs: list[str]
    generated_responses: list[str]
    user_input: str


@app.get("/")
async def health_check():
    return {"status": "OK!"}


@app.post("/chat")
async def llm_response(history: ConversationHistory):
    past = history.past_user_inputs, history.generated_responses
    messages = protocol.to_conversation(*past, history.user_input)
    talk = chatbot(messages, max_new_tokens=32)[0]["generated_text"]
    return talk[-1]["content"]
