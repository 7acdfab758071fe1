"""Serving the page: a private folder for what browsers send, one server, one supervisor."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hf_clamu.desk.office import Office
from hf_clamu.desk.supervisor import Supervisor
from hf_clamu.desk.web.access import Access
from hf_clamu.desk.web.guard import Guard
from hf_clamu.desk.web.sign_in import SignIn
from hf_clamu.desk.web.tries import Tries, address_of_visitor, with_address
from hf_clamu.desk.web.uploads import UPLOADS_VARIABLE, BoundedUploads, private_uploads
from hf_clamu.errors import RecipeError

__all__ = ["make_app", "require_gradio", "serve"]

_MOST_BYTES_OF_A_FILE = 1 << 24
_ABOUT_PASSWORDS = (
    "Users of this deletion desk. After five wrong passwords none is taken for a second, then two, then four, up to a "
    "quarter of an hour, not even the right one."
)


def serve(office: Office, access: Access, port: int, *, ready: Callable[[str], object]) -> None:
    """Serve the page until it is stopped (Ctrl-C, SIGTERM).

    Args:
        office (`Office`): the models.
        access (`Access`): who may use it, and at which address.
        port (`int`): 0 takes a free one.
        ready (*callable*): receives the URL of the page just before it answers.

    Raises:
        RecipeError: if the address cannot be listened on.
    """
    # As Ctrl-C does: otherwise uvicorn ends this process before files that were sent are removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _listening(access.host, port) as listener, private_uploads():
        import uvicorn

        supervisor = Supervisor(office)
        app = make_app(office, access, supervisor)
        config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, ws="none")
        supervisor.start()
        host = f"[{access.host}]" if ":" in access.host else access.host
        ready(f"http://{host}:{listener.getsockname()[1]}")
        try:
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt:
            pass
        finally:
            supervisor.stop()


def require_gradio() -> None:
    """Refuse to go on without what the page is made of.

    Raises:
        RecipeError: naming what to install.
    """
    missing = [name for name in ("gradio", "cyclonedx") if importlib.util.find_spec(name) is None]
    if missing:
        raise RecipeError(f"The desk needs {' and '.join(missing)}: pip install 'hf-clamu[desk]'.")


def make_app(office: Office, access: Access, supervisor: Supervisor) -> Any:
    """Return the page as an ASGI application, guarded.

    Args:
        office (`Office`): the models.
        access (`Access`): who may use it.
        supervisor (`Supervisor`): of the worker.
    """
    # Read when gradio is imported: no word to its makers.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio as gr
    from fastapi import FastAPI

    from hf_clamu.desk.parts.page import build_page, look

    who: dict[str, Any] = {}
    if access.passwords:
        who = {"auth": _bounded(access, Tries()), "auth_message": _ABOUT_PASSWORDS}
    elif access.header is not None:
        header = access.header
        who = {"auth_dependency": lambda request: request.headers.get(header) or None}
    outer = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    page = build_page(office, supervisor, has_logout=bool(access.passwords) or access.accounts is not None)
    app: Any = gr.mount_gradio_app(
        outer,
        page,
        path="/",
        **who,
        **look(),
        max_file_size=_MOST_BYTES_OF_A_FILE,
        show_error=False,
        footer_links=[],
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
    )
    # Only a page that was launched checks that a file that an event names was sent by a browser; this one is mounted.
    page.has_launched = True
    app = with_address(app)
    app = BoundedUploads(app, Path(os.environ[UPLOADS_VARIABLE]))
    if access.accounts is not None:
        app = SignIn(app, access.accounts)
    return Guard(app, only_loopback=access.is_open, may_be_framed="SPACE_ID" in os.environ)


def _bounded(access: Access, tries: Tries) -> Callable[[str, str], bool]:
    """Return what says whether a user has a password, and takes no guess that has to wait."""
    from fastapi import HTTPException

    def knows(user: str, password: str) -> bool:
        address = address_of_visitor()
        seconds = tries.seconds_to_wait(address, user)
        if seconds:
            # 400, as gradio's page says nothing for any other number.
            raise HTTPException(400, f"Too many wrong passwords: wait {math.ceil(seconds)} s and try again.")
        is_right = access.knows(user, password)
        tries.note(address, user, is_right=is_right)
        return is_right

    return knows


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """Listen before anything is imported: a port that is taken should show at once."""
    with contextlib.ExitStack() as stack:
        try:
            found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
            listener = stack.enter_context(socket.socket(found[0], socket.SOCK_STREAM))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(found[4])
            listener.listen()  # whoever comes before the server is ready waits
        except (OSError, OverflowError) as error:
            raise RecipeError(
                f"The desk cannot listen on {host}, port {port}: {error}. Give another --port."
            ) from None
        yield listener
