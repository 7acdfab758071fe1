"""What is refused before it comes to the page.

gradio asks who a visitor is, and tells browsers which sites may read its answers. It does not look at who sends. So a
page of another site could have a form that posts to a desk on the visitor's machine, and a name that was made to lead
to 127.0.0.1 could read it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from hf_clamu.desk.web.access import is_loopback

__all__ = ["Guard", "refuse"]

_Scope = MutableMapping[str, Any]
_App = Callable[[_Scope, Any, Any], Awaitable[None]]

_MOST_BYTES = 1 << 25  # of a body, an image to try included
# Nothing is loaded from elsewhere. gradio's page compiles templates and has styles of its own.
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'self'; form-action 'self'"
)


class Guard:
    """Refuses requests of other sites, of other hosts where nobody is asked who they are, and large bodies.

    Args:
        app (*callable*): what is guarded, an ASGI application.
        only_loopback (`bool`): whether the page is for this machine alone.
        may_be_framed (`bool`): whether pages of other sites may show this one inside them, as a Space of the Hub is.
    """

    def __init__(self, app: _App, *, only_loopback: bool, may_be_framed: bool = False) -> None:
        self._app = app
        self._only_loopback = only_loopback
        frames = "" if may_be_framed else "; frame-ancestors 'self'"
        self._headers = [
            (b"content-security-policy", f"{_POLICY}{frames}".encode("ascii")),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"same-origin"),
        ]

    async def __call__(self, scope: _Scope, receive: Any, send: Any) -> None:
        """Answer or hand on."""
        if scope["type"] == "websocket":
            return  # gradio needs none
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        pairs = [(key.decode("latin-1").lower(), value.decode("latin-1")) for key, value in scope["headers"]]
        is_read = scope["method"] in ("GET", "HEAD") and scope["path"].rstrip("/") != "/logout"
        problem = self._problem(dict(pairs), is_read=is_read)
        if [key for key, _ in pairs].count("host") > 1:
            problem = 400, "There are two hosts in this request."
        if problem is not None:
            await refuse(send, *problem)
            return

        async def sent(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                names = {name for name, _ in self._headers}
                kept = [pair for pair in message.get("headers", ()) if pair[0].lower() not in names]
                message["headers"] = [*kept, *self._headers]
            await send(message)

        await self._app(scope, _bounded(receive), sent)

    def _problem(self, headers: dict[str, str], *, is_read: bool) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if self._only_loopback and not is_loopback(_name_of(host)):
            return 421, "This desk answers to this machine alone: open it as http://127.0.0.1."
        origin = headers.get("origin")
        is_foreign = origin is not None and _place_of(origin) != host.lower()
        is_foreign = is_foreign or headers.get("sec-fetch-site") == "cross-site"
        if is_foreign and not is_read:
            return 403, "This comes from a page of another site."
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > _MOST_BYTES:
            return 413, f"At most {_MOST_BYTES:,} bytes are taken."
        return None


def _name_of(host: str) -> str:
    """Return a host without its port; empty if it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _place_of(origin: str) -> str | None:
    """Return the host and the port of an origin; `None` if it is none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _bounded(receive: Any) -> Any:
    """Return what receives a body, up to the bound: one without a length may be endless."""
    taken = 0

    async def received() -> Any:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > _MOST_BYTES:
            return {"type": "http.disconnect"}
        return message

    return received


async def refuse(send: Any, status: int, text: str) -> None:
    """Answer with a status and a sentence."""
    body = text.encode("utf-8")
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode("ascii"))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
