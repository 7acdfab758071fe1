"""What the Hub's client raises, in one sentence that says what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from hf_clamu.errors import ClamuError, HubError

__all__ = ["client_errors", "is_unreachable", "reason_of", "translate_hub_errors"]


def client_errors() -> tuple[type[BaseException], ...]:
    """Return what the client raises; its HTTP library changed its name between releases."""
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    http_error = next(kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError")
    return (http_error, OSError, ValueError, RuntimeError, EntryNotFoundError)


@contextmanager
def translate_hub_errors(what: str, or_else: str = "try again later") -> Iterator[None]:
    """Turn errors of the client into one sentence.

    Args:
        what (`str`): what cannot be done.
        or_else (`str`): what to do where the Hub cannot be reached.
    """
    try:
        yield
    except ClamuError:
        raise
    except client_errors() as error:
        raise HubError(f"Cannot {what}: {reason_of(error, or_else)}") from error


def reason_of(error: BaseException, or_else: str = "try again later") -> str:
    from huggingface_hub import errors

    status = _status_of(error)
    if isinstance(error, errors.GatedRepoError):
        return "access to it is restricted. Ask for access on its page and log in with `hf auth login`."
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            "there is no such model on the Hub, or this token may not see it. Check the name, and log in with "
            "`hf auth login` or pass token=... if it is private."
        )
    if isinstance(error, getattr(errors, "BucketNotFoundError", ())):  # older clients know none
        return (
            "there is no such bucket on the Hub, or this token may not see it. Check the name, and log in with "
            "`hf auth login`."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return "the model has no such branch, tag or commit (an erased commit is gone for good)."
    if status == 401:
        return "the Hub does not know this token. Log in with `hf auth login` or pass token=...."
    if status == 403:
        return "this token does not permit it. Use one that may write to the repository."
    if status is not None and (status >= 500 or status == 429):
        return f"the Hub answered {status}. Try again later."
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "offline mode is on. Unset HF_HUB_OFFLINE."
    if isinstance(error, errors.LocalEntryNotFoundError):
        cause = error.__cause__
        if cause is not None and not isinstance(cause, errors.OfflineModeIsEnabled):
            return reason_of(cause, or_else)
        return "the cache does not hold it completely, and nothing may be fetched. Load it once while online."
    if isinstance(error, RuntimeError) and error.__cause__ is not None:
        return f"{_first_line(error)} {reason_of(error.__cause__, or_else)}"
    if is_unreachable(error):
        return f"this machine cannot reach the Hub ({_first_line(error)}). Check the network, or {or_else}."
    return f"{_first_line(error)} ({type(error).__name__})."


def is_unreachable(error: BaseException | None) -> bool:
    """Whether there was no answer at all."""
    http_error = client_errors()[0]
    return isinstance(error, (http_error, ConnectionError, TimeoutError)) and _status_of(error) is None


def _status_of(error: BaseException | None) -> int | None:
    """Return the status of the answer that an error is about, if there was one."""
    response = getattr(error, "response", None)
    if response is not None:
        return int(response.status_code)
    # hf_xet raises errors of Python, and says in their text what it was told.
    match = re.search(r"HTTP status (?:client|server) error \((\d{3}) ", str(error))
    return None if match is None else int(match[1])


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no details")
