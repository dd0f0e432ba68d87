import pandas as pd
import streamlit as st
from streamlit_chat import message

LOGO = "data:image/svg+xml;utf8,<svg xmlns='http://www.w3.org/2000/svg'/>"  # else fetched online


def clear_conversation():
    if st.button("🧹 Clear conversation") or "conversation_history" not in st.session_state:
        empty = {"past_user_inputs": [], "generated_responses": []}
        st.session_state.conversation_history = empty


def display_conversation(history):
    pairs = zip(history["past_user_inputs"], history["generated_responses"])
    for number, (question, reply) in reversed(list(enumerate(pairs))):
        message(reply, logo=LOGO, key=f"reply {number}")
        message(question, logo=LOGO, key=f"question {number}", is_user=True)


def download_conversation():
    table = pd.DataFrame(st.session_state.conversation_history)
    st.download_button("💾 Download conversation", table.to_csv(), "conversation.csv")
