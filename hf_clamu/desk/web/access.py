"""Who may use the page: anybody on this machine, and on any other only who is known."""

from __future__ import annotations

import hmac
import ipaddress
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hf_clamu.desk.web.sign_in import USER_HEADER, HubAccounts
from hf_clamu.errors import RecipeError

__all__ = ["Access", "is_loopback", "read_passwords"]

_HEADER = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,99}")
_SHORTEST = 8


@dataclass(frozen=True, kw_only=True)
class Access:
    """How visitors are known.

    Args:
        host (`str`): address that is listened on.
        passwords (*mapping* of `str` to `str`): by user; empty if there is no login.
        header (`str`, *optional*): header in which a reverse proxy names the user that it let in.
        accounts (`HubAccounts`, *optional*): of the Hub, that sign in here; `header` then says who did.
    """

    host: str
    passwords: Mapping[str, str] = field(default_factory=dict, repr=False)
    header: str | None = None
    accounts: HubAccounts | None = None

    @classmethod
    def checked(
        cls,
        host: str,
        *,
        auth_file: Path | None = None,
        auth_header: str | None = None,
        hub_users: Sequence[str] | None = None,
    ) -> Access:
        """Return how visitors are known, if nobody else gets in.

        Args:
            host (`str`): address to listen on.
            auth_file (`Path`, *optional*): see `read_passwords`.
            auth_header (`str`, *optional*): name of a header.
            hub_users (*sequence* of `str`, *optional*): users and organizations of the Hub, see `HubAccounts`.

        Raises:
            RecipeError: if other machines would get in without being known.
        """
        if len([way for way in (auth_file, auth_header, hub_users) if way]) > 1:
            raise RecipeError("Give one of --auth-file, --auth-header and --hub-user: they do not go together.")
        if hub_users:
            return cls(host=host, header=USER_HEADER, accounts=HubAccounts.of_space(hub_users))
        if auth_header is not None and not _HEADER.fullmatch(auth_header):
            raise RecipeError(f"--auth-header names a header such as X-Forwarded-User, found {auth_header[:80]!r}.")
        passwords = {} if auth_file is None else read_passwords(auth_file)
        if not is_loopback(host) and not passwords and auth_header is None:
            raise RecipeError(
                f"{host} can be reached from other machines, and whoever reaches the desk can have data forgotten. "
                "Name the users and their passwords (--auth-file FILE), the header in which a reverse proxy names "
                "the user (--auth-header NAME), or in a Space users of the Hub (--hub-user NAME)."
            )
        return cls(host=host, passwords=passwords, header=auth_header)

    @property
    def is_open(self) -> bool:
        """Whether nobody is asked who they are."""
        return not self.passwords and self.header is None

    def knows(self, user: str, password: str) -> bool:
        """Whether a user has this password; it takes as long if there is no such user."""
        expected = self.passwords.get(user, "")
        same = hmac.compare_digest(password.encode("utf-8", "replace"), expected.encode("utf-8"))
        return same and user in self.passwords


def read_passwords(path: Path) -> dict[str, str]:
    """Read a file of lines `user:password`, which only its owner can read.

    Raises:
        RecipeError: if others can read it, or a line is none of these; no password is shown.
    """
    try:
        mode, text = path.stat().st_mode, path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"The users in {path} cannot be read: {error}") from None
    if not stat.S_ISREG(mode) or mode & 0o077:
        raise RecipeError(f"{path} holds passwords and can be read by others: chmod 600 {path}")
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        user, colon, password = line.partition(":")
        if not colon or not user.strip() or len(password) < _SHORTEST:
            raise RecipeError(
                f"{path}, line {number}: expected user:password, with {_SHORTEST} characters of password at least."
            )
        if user.strip() in found:
            raise RecipeError(f"{path}, line {number}: the user {user.strip()!r} occurs twice.")
        found[user.strip()] = password
    if not found:
        raise RecipeError(f"{path} names no user: write lines user:password.")
    return found


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
