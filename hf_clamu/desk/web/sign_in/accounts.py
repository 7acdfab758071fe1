"""What the Hub says of who comes, and whom to let in."""

from __future__ import annotations

import base64
import json
import os
import re
import urllib.parse
import urllib.request
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_clamu.errors import RecipeError

__all__ = ["HubAccounts"]

_MOST_BYTES = 1 << 20
_TIMEOUT = 20.0


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """What is sent along is for the provider alone."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


@dataclass(frozen=True, kw_only=True)
class HubAccounts:
    """Who says who somebody is, and whom to let in.

    Args:
        provider (`str`): URL of the OpenID provider.
        client_id, client_secret (`str`): of this Space's OAuth app.
        address (`str`): URL of the desk, as browsers reach it.
        allowed (*collection* of `str`): names of users and organizations of the Hub; all members of these get in.
    """

    provider: str
    client_id: str
    client_secret: str = field(repr=False)
    address: str
    allowed: Collection[str]

    @classmethod
    def of_space(cls, allowed: Collection[str], environment: Mapping[str, str] | None = None) -> HubAccounts:
        """Return what the variables of a Space say.

        Raises:
            RecipeError: if one is missing, as it is outside a Space, or nobody is allowed in.
        """
        found = os.environ if environment is None else environment
        names = ("OPENID_PROVIDER_URL", "OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "SPACE_HOST")
        missing = [name for name in names if not found.get(name)]
        if missing:
            raise RecipeError(
                f"Signing in with an account of the Hub works in a Space whose README.md says `hf_oauth: true`; here "
                f"{missing[0]} is not set. Elsewhere, name users in a file (--auth-file)."
            )
        if not allowed or not all(re.fullmatch(r"[\w.-]+", name) for name in allowed):
            raise RecipeError(f"Name the users and organizations of the Hub that may sign in, found {allowed!r}.")
        # With a domain of its own, a Space has two hosts; the Hub knows the first.
        host = found["SPACE_HOST"].split(",")[0].strip()
        provider, client_id, secret = (found[name] for name in names[:3])
        return cls(
            provider=provider.rstrip("/"),
            client_id=client_id,
            client_secret=secret,
            address=f"https://{host}",
            allowed=frozenset(allowed),
        )

    @property
    def return_address(self) -> str:
        """Where the provider sends a browser back to."""
        return f"{self.address}/login/callback"

    def departure(self, state: str) -> str:
        """Return where a browser signs in.

        Raises:
            OSError, ValueError: if the provider does not say it.
        """
        query = {"client_id": self.client_id, "redirect_uri": self.return_address, "response_type": "code"}
        query |= {"scope": "openid profile", "state": state}
        return f"{self._endpoint('authorization_endpoint')}?{urllib.parse.urlencode(query)}"

    def who_came(self, code: str) -> tuple[str, bool]:
        """Return the user that a code stands for, and whether they may come in.

        Raises:
            OSError, ValueError: if the provider does not know the code, or says nothing of use.
        """
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": self.return_address}
        form["client_id"] = self.client_id
        basic = base64.b64encode(f"{self.client_id}:{self.client_secret}".encode()).decode("ascii")
        body = urllib.parse.urlencode(form).encode("ascii")
        token = self._ask(self._endpoint("token_endpoint"), f"Basic {basic}", body)["access_token"]
        user = self._ask(self._endpoint("userinfo_endpoint"), f"Bearer {token}")
        name = user.get("preferred_username")
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            raise ValueError("it names no user")
        # Of an organization that asks for more (a second factor, single sign-on) they are members once they gave it.
        found = user.get("orgs")
        orgs = [org for org in found if isinstance(org, dict)] if isinstance(found, list) else []
        names = [name, *(org.get("preferred_username") for org in orgs if not org.get("securityRestrictions"))]
        known = {one.lower() for one in names if isinstance(one, str)}
        return name, not known.isdisjoint(one.lower() for one in self.allowed)

    def _endpoint(self, name: str) -> str:
        url = self._ask(f"{self.provider}/.well-known/openid-configuration")[name]
        if not isinstance(url, str) or not url.startswith(("https://", f"{self.provider}/")):
            raise ValueError(f"its {name} is no address")
        return url

    @staticmethod
    def _ask(url: str, authorization: str | None = None, body: bytes | None = None) -> dict[str, Any]:
        headers = {"Accept": "application/json"} | ({} if authorization is None else {"Authorization": authorization})
        request = urllib.request.Request(url, data=body, headers=headers)
        with _OPENER.open(request, timeout=_TIMEOUT) as answer:
            value = json.loads(answer.read(_MOST_BYTES))
        if not isinstance(value, dict):
            raise ValueError("its answer is no object")
        return value
