"""What browsers are answered until they are let in."""

from __future__ import annotations

import asyncio
import hmac
import html
import secrets
import time
import urllib.parse
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from typing import Any

from hf_clamu.desk.web.sign_in.accounts import HubAccounts

__all__ = ["USER_HEADER", "SignIn"]

# Only this file writes it: what a browser sends under this name is taken away.
USER_HEADER = "x-clamu-signed-in"
_SECONDS_SIGNED_IN = 8 * 3600
_SECONDS_TO_SIGN_IN = 600
_MOST_REMEMBERED = 10_000
_SESSION, _STATE = "clamu-session", "clamu-state"
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>Deletion desk</title>
<body style="font-family: sans-serif; max-width: 32rem; margin: 4rem auto; padding: 0 1rem">
<h1>Deletion desk</h1><p>{text}</p>
<p><a href="/login" target="_blank" rel="noopener">Sign in with Hugging Face</a></p></body></html>"""

_Scope = MutableMapping[str, Any]
_App = Callable[[_Scope, Any, Any], Awaitable[None]]


class SignIn:
    """Lets nobody through who has not signed in and is not allowed, and names who it is in a header.

    Args:
        app (*callable*): what is behind it, an ASGI application.
        accounts (`HubAccounts`): who is let in.
    """

    def __init__(self, app: _App, accounts: HubAccounts) -> None:
        self._app = app
        self._accounts = accounts
        self._states: dict[str, float] = {}  # when they end, by the word of a browser that went to sign in
        self._sessions: dict[str, tuple[str, float]] = {}  # the user, and when it ends

    async def __call__(self, scope: _Scope, receive: Any, send: Any) -> None:
        """Answer or hand on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        cookies = _cookies(scope)
        path, is_read = scope["path"].rstrip("/"), scope["method"] in ("GET", "HEAD")
        if path == "/login" and is_read:
            await self._depart(send)
        elif path == "/login/callback" and is_read:
            await self._arrive(scope, cookies, send)
        elif path == "/logout":
            self._sessions.pop(cookies.get(_SESSION, ""), None)
            await _answer(send, 303, location="/", cookies=[self._cookie(_SESSION, "", 0)])
        elif (user := self._user(cookies)) is not None:
            kept = [pair for pair in scope["headers"] if pair[0].lower() != USER_HEADER.encode()]
            named = (USER_HEADER.encode(), user.encode("ascii"))
            await self._app({**scope, "headers": [*kept, named]}, receive, send)
        else:
            await _answer(send, 401, "Who answers requests signs in first.")

    def _user(self, cookies: Mapping[str, str]) -> str | None:
        user, end = self._sessions.get(cookies.get(_SESSION, ""), (None, 0.0))
        return user if time.monotonic() < end else None

    async def _depart(self, send: Any) -> None:
        state = secrets.token_urlsafe(32)
        try:
            address = await asyncio.to_thread(self._accounts.departure, state)
        except (OSError, ValueError, KeyError):
            await _answer(send, 502, "The Hub cannot be reached. Try again later.")
            return
        _remember(self._states, state, time.monotonic() + _SECONDS_TO_SIGN_IN)
        await _answer(send, 303, location=address, cookies=[self._cookie(_STATE, state, _SECONDS_TO_SIGN_IN)])

    async def _arrive(self, scope: _Scope, cookies: Mapping[str, str], send: Any) -> None:
        query = urllib.parse.parse_qs(scope["query_string"].decode("latin-1"))
        state, code = query.get("state", [""])[0], query.get("code", [""])[0]
        # Its own, not one that somebody else's sign-in was given: otherwise a link would sign in as another.
        own = hmac.compare_digest(state.encode(), cookies.get(_STATE, "").encode())
        if not own or not code or self._states.pop(state, 0.0) < time.monotonic():
            await _answer(send, 400, "This way to sign in has ended.")
            return
        try:
            user, is_allowed = await asyncio.to_thread(self._accounts.who_came, code)
        except (OSError, ValueError, KeyError):
            await _answer(send, 502, "The Hub did not say who you are.")
            return
        if not is_allowed:
            await _answer(send, 403, f"{user} may not use this desk. Ask its owner.")
            return
        session = secrets.token_urlsafe(32)
        _remember(self._sessions, session, (user, time.monotonic() + _SECONDS_SIGNED_IN))
        gone = self._cookie(_STATE, "", 0)
        await _answer(send, 303, location="/", cookies=[gone, self._cookie(_SESSION, session, _SECONDS_SIGNED_IN)])

    def _cookie(self, name: str, value: str, seconds: int) -> str:
        # Lax: pages of other sites that show this one inside them get nobody who is signed in.
        secure = "; Secure" if self._accounts.address.startswith("https:") else ""
        return f"{name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}"


def _remember(memory: dict[str, Any], key: str, value: Any) -> None:
    while len(memory) >= _MOST_REMEMBERED:
        del memory[next(iter(memory))]
    memory[key] = value


def _cookies(scope: _Scope) -> dict[str, str]:
    found = {}
    for key, value in scope["headers"]:
        if key.lower() == b"cookie":
            for pair in value.decode("latin-1").split(";"):
                name, _, word = pair.strip().partition("=")
                found[name] = word
    return found


async def _answer(
    send: Any, status: int, text: str = "", *, location: str | None = None, cookies: Collection[str] = ()
) -> None:
    body = _PAGE.format(text=html.escape(text)).encode("utf-8") if text else b""
    headers = [(b"content-type", b"text/html; charset=utf-8"), (b"content-length", str(len(body)).encode("ascii"))]
    headers += [(b"cache-control", b"no-store"), *((b"set-cookie", one.encode("latin-1")) for one in cookies)]
    if location is not None:
        headers.append((b"location", location.encode("latin-1")))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
