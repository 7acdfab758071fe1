"""Who gets at the desk, from where, and at which files: real requests to a real server."""

from __future__ import annotations

import json
import socket
import time
import urllib.parse

import pytest

from hf_clamu.desk.office import DeskModel, Office, WorkerOptions
from hf_clamu.desk.web.access import Access, is_loopback, read_passwords
from hf_clamu.errors import RecipeError
from hf_clamu.operations.intake.book import Asked, RequestBook


@pytest.fixture
def users(tmp_path):
    path = tmp_path / "users"
    path.write_text("# who may\nanna:correct horse\nben : battery staple:with colon\n")
    path.chmod(0o600)
    return path


def _join(running, function, data, **headers):
    """Send an event of the page, as its browser code does."""
    value = {"data": data, "fn_index": function, "session_hash": "s", "event_data": None, "trigger_id": None}
    return running.post("/gradio_api/queue/join", value, **headers)


def test_loopback_alone_needs_no_login(users):
    for host in ("127.0.0.1", "localhost", "::1", "[::1]", "127.9.9.9"):
        assert is_loopback(host)
        assert Access.checked(host).is_open
    for host in ("0.0.0.0", "::", "192.168.1.4", "desk.example.org", ""):
        assert not is_loopback(host)
        with pytest.raises(RecipeError, match="can be reached from other machines"):
            Access.checked(host)
        assert not Access.checked(host, auth_file=users).is_open
        assert not Access.checked(host, auth_header="X-Forwarded-User").is_open
    with pytest.raises(RecipeError, match="do not go together"):
        Access.checked("0.0.0.0", auth_file=users, auth_header="X-User")
    with pytest.raises(RecipeError, match="names a header"):
        Access.checked("0.0.0.0", auth_header="X User: a")


def test_passwords(users):
    access = Access.checked("0.0.0.0", auth_file=users)
    assert access.knows("anna", "correct horse")
    assert access.knows("ben", " battery staple:with colon")
    for user, password in (("anna", "correct"), ("anna", ""), ("carl", ""), ("", ""), ("anna", "corr\ud800")):
        assert not access.knows(user, password)
    assert "correct" not in repr(access)


@pytest.mark.parametrize(
    ("text", "mode", "message"),
    [
        ("anna:correct horse\n", 0o644, "can be read by others"),
        ("anna\n", 0o600, "line 1: expected user:password"),
        ("anna:short\n", 0o600, "8 characters"),
        (":correct horse\n", 0o600, "line 1"),
        ("a:correct horse\na:correct horse\n", 0o600, "line 2: the user 'a' occurs twice"),
        ("\n# nobody\n", 0o600, "names no user"),
    ],
)
def test_a_file_of_users_that_is_none(tmp_path, text, mode, message):
    path = tmp_path / "users"
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(RecipeError) as error:
        read_passwords(path)
    assert message in str(error.value)
    assert "horse" not in str(error.value)
    with pytest.raises(RecipeError, match="cannot be read"):
        read_passwords(tmp_path / "none")


def test_the_worker_gets_its_words_and_no_model_but_those_of_the_desk(tmp_path):
    (tmp_path / "a" / "model").mkdir(parents=True)
    (tmp_path / "b" / "model").mkdir(parents=True)
    options = WorkerOptions(archive="hf://org/archive", verify="audit", erase_history=True)
    assert options.words() == [
        *("--archive", "hf://org/archive", "--verify", "audit", "--on-mismatch", "error", "--erase-history")
    ]
    models = [DeskModel(source=str(tmp_path / name / "model"), options=options) for name in ("a", "b")]
    with pytest.raises(RecipeError, match="same name"):
        Office(models)
    office = Office(models[:1])
    assert office["model"] is models[0]
    for name in ("../b/model", str(tmp_path / "b" / "model"), None, 0, ["model"], {"a": 1}):
        with pytest.raises(RecipeError, match="no such model"):
            office[name]


def test_other_sites_hosts_and_files_are_refused(desk, work):
    running = desk("model")
    host = urllib.parse.urlsplit(running.url).netloc
    assert running.get()[0] == 200
    # A name that was made to lead here, and a page of another site that posts.
    assert running.get(Host="evil.example:80")[0] == 421
    assert running.get(Host=f"127.0.0.1.evil.example:{host.rpartition(':')[2]}")[0] == 421
    assert running.get(Host="[::1")[0] == 421
    assert _raw(running, f"GET / HTTP/1.1\r\nHost: {host}\r\nHost: evil.example\r\n\r\n").split()[1] == "400"
    body = {"data": ["model"], "fn_index": 0, "session_hash": "s"}
    assert running.post("/gradio_api/queue/join", body)[0] == 200
    assert running.post("/gradio_api/queue/join", body, Origin=f"http://{host}")[0] == 200
    assert running.get("/logout", **{"Sec-Fetch-Site": "cross-site"})[0] == 403
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://[:"},
        {"Sec-Fetch-Site": "cross-site"},
    ):
        assert running.post("/gradio_api/queue/join", body, **headers)[0] == 403
    # As a form of another site can post it, without asking first.
    text = {"Origin": "http://evil.example", "Content-Type": "text/plain"}
    assert running.post("/gradio_api/queue/join", body, **text)[0] == 403
    for path in (
        "/gradio_api/file=/etc/passwd",
        f"/gradio_api/file={work}/rows.jsonl",
        "/gradio_api/file=rows.jsonl",
        "/gradio_api/file=../../../../etc/passwd",
        "/gradio_api/file=model/ledger.json",
        "/gradio_api/proxy=http://127.0.0.1:1/",
    ):
        status, text = running.get(path)
        assert status in (400, 403, 404), path
        assert "user_1" not in text
        assert "root:" not in text
    assert running.get("/docs")[0] == 404
    assert running.get("/gradio_api/info")[1].count("/") < 3  # offers nothing to programs


def test_a_path_that_an_event_names_is_not_read(desk, work):
    """An event that says that a file was sent which nobody sent."""
    running = desk("model")
    config = json.loads(running.get("/config")[1])
    (file,) = (one["id"] for one in config["components"] if one["props"].get("elem_id") == "file")
    (number,) = (one["id"] for one in config["dependencies"] if [file, "upload"] in one["targets"])
    (work / "other.csv").write_text("task\nuser_7\n")
    for path in (str(work / "other.csv"), "other.csv", "/etc/passwd", f"{running.url}/config"):
        sent = {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "a.csv", "size": 1}
        _join(running, number, ["model", sent])
    _join(running, number, ["../other", None])
    told = _events(running, 5)
    assert told.count("process_completed") == 5
    assert "taken in" not in told
    assert RequestBook.of("model").read() == []
    assert (work / "other.csv").is_file()


def _raw(running, text):
    """Send a request as it is, and return the first bytes of the answer."""
    host, port = running.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(text.encode())
        return connection.recv(200).decode()


def _events(running, count):
    """Return what the server says of the events of session `s`, up to a number that are completed."""
    host, port = running.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        request = f"GET /gradio_api/queue/data?session_hash=s HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n"
        connection.sendall(request.encode())
        found = ""
        while found.count("process_completed") < count:
            part = connection.recv(65536)
            assert part, found
            found += part.decode("utf-8", "replace")
    return found


def test_a_large_body_is_refused(desk):
    running = desk("model")
    host, port = running.url.removeprefix("http://").split(":")
    for length in ("99999999999", "-1", "x"):
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {length}\r\n\r\n"
            connection.sendall(head.encode())
            assert connection.recv(100).split()[1] in (b"413", b"400")


def test_with_a_password_file_nobody_else_gets_in(desk, users):
    running = desk("model", "--host", "0.0.0.0", "--auth-file", str(users))
    body = {"data": ["model"], "fn_index": 0, "session_hash": "s"}
    for path in ("/config", "/gradio_api/info", "/gradio_api/queue/data?session_hash=s"):
        assert running.get(path)[0] == 401, path
    for path in ("/gradio_api/queue/join", "/gradio_api/upload", "/gradio_api/run/predict"):
        assert running.post(path, body)[0] == 401, path
    assert "user_1" not in running.get()[1]
    form = {"Content-Type": "application/x-www-form-urlencoded"}

    def login(user, password, **headers):
        return running.form(
            "/login", urllib.parse.urlencode({"username": user, "password": password}), **form, **headers
        )

    told = [login("anna", f"wrong {number}") for number in range(20)]
    assert {status for status, _, _ in told} == {400}
    assert "Incorrect credentials" in told[4][1]
    assert "Too many wrong passwords: wait 1 s" in told[5][1]
    # The right one neither. Another user is let in, and the same one from another address.
    assert login("carl", "correct horse")[0] == 400
    elsewhere = {"X-Forwarded-For": "203.0.113.5"}  # by a proxy on this machine
    assert login("anna", "correct horse", **elsewhere)[0] == login("ben", " battery staple:with colon")[0] == 200
    until = time.monotonic() + 30
    while (found := login("anna", "correct horse"))[0] != 200:
        assert "Too many wrong passwords" in found[1]
        assert time.monotonic() < until
        time.sleep(0.1)
    cookies = found[2]
    assert running.get("/config", Cookie=cookies)[0] == 200
    assert running.get("/config", Cookie=cookies.replace("=", "=x"))[0] == 401


def test_behind_a_proxy_that_names_the_user(desk):
    running = desk("model", "--host", "0.0.0.0", "--auth-header", "X-Forwarded-User")
    assert running.get("/config")[0] == 401
    assert running.get("/config", **{"X-Forwarded-User": ""})[0] == 401
    assert running.get("/config", **{"X-Forwarded-User": "anna"})[0] == 200


def test_in_a_space_only_who_signed_in_gets_in(desk, clamu_words):
    space = {"OPENID_PROVIDER_URL": "http://127.0.0.1:9", "OAUTH_CLIENT_ID": "id", "OAUTH_CLIENT_SECRET": "secret"}
    space |= {"SPACE_HOST": "org-desk.hf.space", "SPACE_ID": "org/desk"}
    running = desk("model", "--host", "0.0.0.0", "--hub-user", "anna", "--hub-user", "office", **space)
    for path in ("/", "/config", "/gradio_api/info", "/theme.css", "/user"):
        status, body = running.get(path, **{"X-Clamu-Signed-In": "anna", "Cookie": "clamu-session=; session=x"})
        assert status == 401, path
        assert "Sign in with Hugging Face" in body
        assert "user_1" not in body
    assert running.post("/gradio_api/queue/join", {"data": []})[0] == 401
    # Nobody is let in while the Hub cannot be asked.
    assert running.get("/login")[0] == 502
    code, err = clamu_words("desk", "model", "--hub-user", "anna")
    assert (code, "here OPENID_PROVIDER_URL is not set" in err) == (2, True)


@pytest.mark.browser
def test_a_browser_logs_in(desk, users, chromium, work):
    running = desk("model", "--auth-file", str(users))
    RequestBook.of("model").add([Asked(tasks=("user_7",), name="letter")])
    context = chromium.new_context()
    page = context.new_page()
    page.goto(running.url)
    page.fill("input[type=text], input:not([type=password])", "anna")
    page.fill("input[type=password]", "correct horse")
    page.keyboard.press("Enter")
    page.wait_for_selector("#requests td:has-text('letter')", timeout=30_000)
    page.click("#signed-in >> text=Log out")
    page.wait_for_selector("text=After five wrong passwords", timeout=30_000)
    assert page.locator("#requests").count() == 0
    context.close()


def test_wrong_words(clamu_words, work):
    for words, message in (
        ((), "Name the models (clamu desk DIR)"),
        (("model", "--demo"), "Name the models (clamu desk DIR)"),
        (("nowhere",), "nowhere"),
        (("model", "--host", "0.0.0.0"), "can be reached from other machines"),
        (("model", "--host", "256.1.1.1", "--auth-header", "X-User"), "cannot listen on 256.1.1.1"),
        (("model", "--port", "99999"), "less than or equal to 65535"),
    ):
        code, err = clamu_words("desk", *words)
        assert code == 2, words
        assert message in err, words
        assert len(err.splitlines()) == 1, err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, err = clamu_words("desk", "model", "--port", str(taken.getsockname()[1]))
        assert (code, "Give another --port" in err) == (2, True)
