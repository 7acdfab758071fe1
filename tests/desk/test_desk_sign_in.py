"""Signing in with an account of the Hub: a provider on loopback, and the ASGI application that asks it."""

from __future__ import annotations

import asyncio
import urllib.parse

import pytest
from hub_accounts import Provider, TlsFront

from hf_clamu.desk.web.sign_in import USER_HEADER, HubAccounts, SignIn
from hf_clamu.errors import RecipeError


@pytest.fixture
def provider():
    found = Provider()
    found.users["a"] = {"preferred_username": "anna", "orgs": []}
    found.users["b"] = {"preferred_username": "ben", "orgs": [{"preferred_username": "Office"}]}
    found.users["c"] = {"preferred_username": "carl", "orgs": [{"preferred_username": "elsewhere"}]}
    restricted = {"preferred_username": "office", "securityRestrictions": ["mfa"]}
    found.users["d"] = {"preferred_username": "dora", "orgs": [restricted, {"preferred_username": None}, "office"]}
    found.users["e"] = {"preferred_username": "anna\r\nx-admin: 1"}
    found.users["f"] = {"orgs": [{"preferred_username": "office"}]}
    yield found
    found.close()


class Browser:
    """Asks the application, keeps its cookies, and remembers what came to what is behind it."""

    def __init__(self, accounts: HubAccounts) -> None:
        self.behind: list[dict] = []
        self.cookies: dict[str, str] = {}
        self.set: list[str] = []
        self._app = SignIn(self._page, accounts)

    async def _page(self, scope, receive, send):
        self.behind.append(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"the page"})

    def ask(self, target: str, method: str = "GET", headers: dict[str, str] | None = None) -> tuple[int, str, str]:
        """Return status, body and where it leads."""
        path, _, query = target.partition("?")
        pairs = {"cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items()), **(headers or {})}
        scope = {"type": "http", "method": method, "path": path, "query_string": query.encode()}
        scope["headers"] = [(name.encode(), value.encode()) for name, value in pairs.items()]
        sent: list[dict] = []

        async def send(message):
            sent.append(message)

        asyncio.run(self._app(scope, None, send))
        found = [(key.decode(), value.decode()) for key, value in sent[0]["headers"]]
        self.set = [value for key, value in found if key == "set-cookie"]
        for one in self.set:
            name, _, value = one.split(";")[0].partition("=")
            self.cookies[name] = value
        return sent[0]["status"], sent[1]["body"].decode(), dict(found).get("location", "")

    def sign_in(self, code: str) -> tuple[int, str, str]:
        state = urllib.parse.parse_qs(urllib.parse.urlsplit(self.ask("/login")[2]).query)["state"][0]
        return self.ask(f"/login/callback?code={code}&state={state}")


def _accounts(provider, address="http://desk", allowed=("Anna", "office")):
    return HubAccounts(
        provider=provider.url, client_id="id", client_secret="secret", address=address, allowed=frozenset(allowed)
    )


@pytest.fixture
def browser(provider):
    return Browser(_accounts(provider))


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("GET", path) for path in ("/", "/config", "/gradio_api/info", "/assets/index.js", "/theme.css", "/user")),
        *(("GET", path) for path in ("/gradio_api/queue/data", "/gradio_api/file=/etc/passwd", "/login/x", "//login")),
        *(
            ("POST", path)
            for path in ("/", "/login", "/login/callback", "/gradio_api/queue/join", "/gradio_api/upload")
        ),
    ],
)
def test_nothing_is_served_to_who_is_not_known(browser, method, path):
    status, body, _ = browser.ask(path, method)
    assert status == 401
    assert "Sign in with Hugging Face" in body
    assert browser.behind == []


def test_who_is_allowed_gets_in_by_name(browser, provider):
    status, _, where = browser.ask("/login")
    address = urllib.parse.urlsplit(where)
    query = dict(urllib.parse.parse_qsl(address.query))
    assert (status, f"{address.scheme}://{address.netloc}{address.path}") == (303, f"{provider.url}/oauth/authorize")
    assert query.pop("state") == browser.cookies["clamu-state"]
    assert query == {
        "client_id": "id",
        "redirect_uri": "http://desk/login/callback",
        "response_type": "code",
        "scope": "openid profile",
    }
    for code, user in (("a", "anna"), ("b", "ben")):
        assert browser.sign_in(code)[::2] == (303, "/")
        forged = {USER_HEADER: "root", USER_HEADER.title(): "root"}
        assert browser.ask("/gradio_api/queue/join", "POST", forged)[:2] == (200, "the page")
        named = [value for key, value in browser.behind[-1]["headers"] if key.lower() == USER_HEADER.encode()]
        assert named == [user.encode()]
    # Out again: neither this browser nor one that kept the word.
    word = browser.cookies["clamu-session"]
    assert browser.ask("/logout", "POST")[::2] == (303, "/")
    assert browser.ask("/")[0] == 401
    browser.cookies["clamu-session"] = word
    assert browser.ask("/")[0] == 401


@pytest.mark.parametrize(("code", "user"), [("c", "carl"), ("d", "dora")])
def test_others_are_told_so(browser, code, user):
    status, body, _ = browser.sign_in(code)
    assert status == 403
    assert f"{user} may not use this desk" in body
    assert "clamu-session" not in browser.cookies
    assert browser.ask("/")[0] == 401


@pytest.mark.parametrize("code", ["e", "f", "unknown"])
def test_who_is_no_user_does_not_get_in(browser, code):
    assert browser.sign_in(code)[0] == 502
    assert browser.ask("/")[0] == 401


def test_a_way_in_is_for_one_browser_and_once(browser, provider):
    state = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(browser.ask("/login")[2]).query))["state"]
    victim = Browser(_accounts(provider))
    victim.ask("/login")
    victim_s = victim.cookies["clamu-state"]
    # A link that would sign somebody in as another.
    assert victim.ask(f"/login/callback?code=a&state={state}")[0] == 400
    assert victim.ask("/login/callback?code=a")[0] == 400
    assert victim.ask(f"/login/callback?state={victim_s}")[0] == 400
    victim.cookies.clear()
    assert victim.ask("/login/callback?code=a&state=")[0] == 400
    assert browser.ask(f"/login/callback?code=a&state={state}")[0] == 303
    browser.cookies["clamu-state"] = state
    assert browser.ask(f"/login/callback?code=a&state={state}")[0] == 400


def test_cookies_are_for_the_desk_alone(provider):
    browser = Browser(_accounts(provider, address="https://org-desk.hf.space"))
    browser.sign_in("a")
    assert all(one.endswith("; HttpOnly; SameSite=Lax; Secure") for one in browser.set)
    assert [one.split("=")[0] for one in browser.set] == ["clamu-state", "clamu-session"]


def test_a_provider_that_leads_elsewhere_is_not_followed(browser, provider):
    provider.endpoints["userinfo_endpoint"] = f"{provider.url}/moved"
    assert browser.sign_in("a")[0] == 502
    assert "/userinfo" not in provider.asked
    provider.endpoints["token_endpoint"] = "http://elsewhere.example/token"
    assert browser.sign_in("a")[0] == 502
    provider.endpoints.clear()
    assert browser.ask("/login")[0] == 502


def test_it_is_of_a_space():
    found = {"OPENID_PROVIDER_URL": "https://huggingface.co/", "OAUTH_CLIENT_ID": "id", "OAUTH_CLIENT_SECRET": "s"}
    found["SPACE_HOST"] = "org-desk.hf.space,desk.example.org"
    accounts = HubAccounts.of_space(["anna", "office"], found)
    assert accounts.return_address == "https://org-desk.hf.space/login/callback"
    assert "client_secret" not in repr(accounts)
    for name in found:
        with pytest.raises(RecipeError, match=f"hf_oauth: true.*{name} is not set"):
            HubAccounts.of_space(["anna"], {**found, name: ""})
    for nobody in ([], [""], ["anna, ben"]):
        with pytest.raises(RecipeError, match="may sign in"):
            HubAccounts.of_space(nobody, found)


@pytest.mark.browser
def test_users_sign_in_with_the_hub_and_out_again(desk, provider, chromium, tmp_path):
    front = TlsFront(tmp_path)
    space = {"OPENID_PROVIDER_URL": provider.url, "OAUTH_CLIENT_ID": "id", "OAUTH_CLIENT_SECRET": "secret"}
    running = desk("model", "--hub-user", "anna", "--hub-user", "office", **space, SPACE_HOST=front.host)
    front.port_behind = urllib.parse.urlsplit(running.url).port
    context = chromium.new_context(ignore_https_errors=True)
    page = context.new_page()
    page.set_default_timeout(30_000)

    def sign_in(code):
        provider.who_comes = code
        page.goto(f"https://{front.host}/")
        assert "Who answers requests signs in first." in page.inner_text("body")
        with context.expect_page() as opened:  # the Hub shows Spaces in a frame, and this page leaves it
            page.click("text=Sign in with Hugging Face")
        return opened.value

    refused = sign_in("c")
    refused.wait_for_selector("text=carl may not use this desk. Ask its owner.")
    assert refused.locator("#requests").count() == 0
    tab = sign_in("b")
    tab.wait_for_selector("#signed-in:has-text('Signed in as ben. Log out')", timeout=30_000)
    tab.fill("#tasks textarea", "user_7")
    tab.fill("#request-id input, #request-id textarea", "letter")
    tab.click("#add")
    tab.wait_for_selector("#requests td:has-text('letter')", timeout=30_000)
    assert {one["name"]: (one["secure"], one["httpOnly"]) for one in context.cookies()} == {
        "clamu-session": (True, True)
    }
    tab.click("text=Log out")
    tab.wait_for_selector("text=Who answers requests signs in first.")
    assert context.cookies() == []
    page.reload()
    assert page.locator("#requests").count() == 0
    context.close()
    front.close()
