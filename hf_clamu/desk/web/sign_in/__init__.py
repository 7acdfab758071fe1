"""Signing in with an account of the Hugging Face Hub: what a Space does that says `hf_oauth: true`.

gradio and huggingface_hub have such routes, too. Outside a Space theirs let everybody in as the owner of the machine's
token, and gradio serves its page before it asks. Here nothing of the page is served to somebody unknown, and what is
known stays in this process: a browser gets a random word.

accounts.py  what the Hub says of who comes, and whom to let in
visitors.py  what browsers are answered until they are let in

Source: https://huggingface.co/docs/hub/oauth (OpenID Connect, authorization code).
"""

from hf_clamu.desk.web.sign_in.accounts import HubAccounts
from hf_clamu.desk.web.sign_in.visitors import USER_HEADER, SignIn

__all__ = ["USER_HEADER", "HubAccounts", "SignIn"]
