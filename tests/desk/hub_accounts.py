"""Doubles of what a Space of the Hub has around it: an OpenID provider, and what speaks TLS before it."""

from __future__ import annotations

import base64
import contextlib
import datetime
import json
import socket
import ssl
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


class Provider:
    """An OpenID provider with users by code."""

    def __init__(self) -> None:
        provider = self
        self.users: dict[str, dict] = {}
        self.who_comes = ""  # the code of whoever is asked to authorize
        self.endpoints: dict[str, str] = {}
        self.asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def _send(self, value: object, status: int = 200, where: str = "") -> None:
                body = json.dumps(value).encode()
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", where or f"{provider.url}/userinfo")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self) -> None:
                provider.asked.append(self.path)
                token = self.headers.get("Authorization", "").removeprefix("Bearer token-of-")
                if self.path == "/.well-known/openid-configuration":
                    self._send(provider.endpoints)
                elif self.path == "/userinfo" and token in provider.users:
                    self._send(provider.users[token])
                elif self.path.startswith("/oauth/authorize?"):
                    query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
                    back = urllib.parse.urlencode({"code": provider.who_comes, "state": query["state"]})
                    self._send({}, 302, f"{query['redirect_uri']}?{back}")
                else:
                    self._send({}, 302 if self.path == "/moved" else 401)

            def do_POST(self) -> None:
                form = dict(urllib.parse.parse_qsl(self.rfile.read(int(self.headers["Content-Length"])).decode()))
                basic = base64.b64decode(self.headers["Authorization"].removeprefix("Basic ")).decode()
                fits = basic == "id:secret" and form["redirect_uri"].endswith("/login/callback")
                fits = fits and form["grant_type"] == "authorization_code" and form["code"] in provider.users
                self._send({"access_token": f"token-of-{form['code']}"} if fits else {}, 200 if fits else 400)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        names = {"authorization_endpoint": "oauth/authorize", "token_endpoint": "oauth/token"}
        for name, path in {**names, "userinfo_endpoint": "userinfo"}.items():
            self.endpoints[name] = f"{self.url}/{path}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class TlsFront:
    """Takes TLS on a port of its own and hands the bytes on to another port of this machine, as the Hub does.

    Args:
        folder (`Path`): where its certificate is kept.
    """

    def __init__(self, folder: Path) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(_certificate(folder))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.port_behind = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._hand_on, args=(connection,), daemon=True).start()

    def _hand_on(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            with (
                self._context.wrap_socket(connection, server_side=True) as visitor,
                socket.create_connection(("127.0.0.1", self.port_behind)) as desk,
            ):
                # A TLS connection is used by one thread at a time: waiting for a moment lets the other way go on.
                visitor.settimeout(0.02)
                desk.settimeout(0.02)
                ways = [(visitor, desk), (desk, visitor)]
                while all(_pass_on(*way) for way in ways):
                    pass


def _pass_on(one: socket.socket, other: socket.socket) -> bool:
    """Hand on what has come; False at the end."""
    try:
        data = one.recv(1 << 16)
    except TimeoutError:
        return True
    other.settimeout(10)
    other.sendall(data)
    other.settimeout(0.02)
    return bool(data)


def _certificate(folder: Path) -> Path:
    """Write a certificate of nobody with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    path = folder / "front.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return path
