import os

import requests
import streamlit as st
import utils

BACKEND_URL = os.environ.get("CHATBOT_BACKEND_URL", "http://127.0.0.1:8000")


@st.cache_data(show_spinner=False)
def microservice_llm_response(user_input):
    payload = st.session_state.conversation_history
    payload["user_input"] = user_input
    response = requests.post(f"{BACKEND_URL}/chat", json=payload)
    payload["past_user_inputs"].append(user_input)
    payload["generated_responses"].append(response.json())


def main():
    st.title("Microservices chatbot")
    left, right = st.columns(2)
    with left:
        utils.clear_conversation()
    if user_input := st.text_input("Ask your question 👇"):
        microservice_llm_response(user_input)
    utils.display_conversation(st.session_state.conversation_history)
    with right:
        utils.download_conversation()


main()
