import streamlit as st
import utils
from transformers import pipeline

import chatbot_arch.engines.protocol as protocol
import chatbot_arch.engines.weights as weights
import chatbot_arch.settings as settings

chatbot = pipeline("text-generation", weights.embedded_model(settings.read_settings().cache_dir))


@st.cache_data(show_spinner=False)
def monolith_llm_response(user_input):
    history = st.session_state.conversation_history
    past = history["past_user_inputs"], history["generated_responses"]
    messages = protocol.to_conversation(*past, user_input)
    talk = chatbot(messages, max_new_tokens=32)[0]["generated_text"]
    history["past_user_inputs"].append(user_input)
    history["generated_responses"].append(talk[-1]["content"])


def main():
    st.title("Monolithic chatbot")
    left, right = st.columns(2)
    with left:
        utils.clear_conversation()
    if user_input := st.text_input("Ask your question 👇"):
        monolith_llm_response(user_input)
    utils.display_conversation(st.session_state.conversation_history)
    with right:
        utils.download_conversation()


main()
