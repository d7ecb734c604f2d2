"""Who may ask, and how much: every request passes here before anything reads it.

- **Host**: a page of the web whose name is made to point at this machine (DNS rebinding) asks by that name, and is refused.
- **Origin**: a page of another site may not ask, unless its origin was named; then it may read the answers, too (CORS).
- **Token**: where one is set, every request brings it: `Authorization: Bearer TOKEN`, or the cookie that `/?token=TOKEN` sets.
- **Size**: a body over the limit is refused before it is read whole.

Responses are never guessed at (`nosniff`), and HTML may load from here alone.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tuneful.errors import ConfigError

COOKIE = "tuneful_token"
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; font-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
}
_LOOPBACK_NAMES = ("localhost",)
_ANY_ADDRESS = ("0.0.0.0", "::", "")
_NAVIGATION = "navigate"

Refuse = Callable[[str, int, str], tuple[bytes, bytes]]
"""(path, status, message) -> (content type, body) of an error, in the shape of the protocol that the path belongs to."""


@dataclass(frozen=True, slots=True)
class Access:
    """Who may ask a server that listens on `host`: `allowed_hosts` are further names that it is called by, `origins` the pages of
    other sites that may use it, `token` the secret that every request has to bring, "" for none."""

    host: str = "127.0.0.1"
    token: str = ""
    allowed_hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    max_body_bytes: int = 4 << 20

    def check(self) -> None:
        """Raise ConfigError for what would be unsafe or means nothing."""
        if not self.token and not _is_loopback(self.host):
            raise ConfigError(
                f"--host {self.host} lets other machines ask, and there is no token: give --token TOKEN (or set "
                "TUNEFUL_TOKEN), or keep --host 127.0.0.1"
            )
        if self.token and (
            len(self.token) < 8 or not self.token.isascii() or not self.token.isprintable() or " " in self.token
        ):
            raise ConfigError("--token: at least 8 printable ASCII characters without spaces")
        for name in self.allowed_hosts:
            if not name or "*" in name or "/" in name or _host_of(name) is None:
                raise ConfigError(f"--allow-host {name}: give the name of a host, such as host.docker.internal")
        for origin in self.origins:
            parts = urlsplit(origin)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.path or parts.query:
                raise ConfigError(f"--cors {origin}: give an origin such as https://example.org, without a path")

    def knows_host(self, header: str | None) -> bool:
        """Whether the `Host` header of a request names this server."""
        name = None if header is None else _host_of(header)
        if name is None:
            return False
        if name in _LOOPBACK_NAMES or name in {one.lower() for one in self.allowed_hosts} or name == self.host.lower():
            return name not in _ANY_ADDRESS or name in self.allowed_hosts
        address = _address(name)
        if address is None:
            return False
        # Under an address nobody can be led here: there is no name that could be made to point elsewhere.
        return address.is_loopback or (not _is_loopback(self.host) and not address.is_unspecified)

    def knows_origin(self, origin: str | None, host: str, fetch_site: str | None, fetch_mode: str | None) -> bool:
        """Whether a request may come from the page at `origin`, None for none; browsers say `fetch_site` and `fetch_mode`,
        too."""
        if origin is None:
            return fetch_site in (None, "same-origin", "none") or fetch_mode == _NAVIGATION
        return origin in self.origins or origin.lower() in (f"http://{host.lower()}", f"https://{host.lower()}")

    def knows_token(self, headers: Mapping[str, str]) -> bool:
        """Whether a request brings the token, if one is needed."""
        if not self.token:
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _same(given.strip(), self.token):
            return True
        return _same(_cookie(headers.get("cookie", "")), self.cookie)

    @property
    def cookie(self) -> str:
        """What stands in the cookie for the token."""
        return hmac.new(self.token.encode(), b"tuneful serve", hashlib.sha256).hexdigest()


class BodyTooLargeError(Exception):
    """A body that goes on over the limit."""


class Guard:
    """An ASGI application before another: what may not pass is answered here, in the words of `refuse`."""

    def __init__(self, app: Any, access: Access, refuse: Refuse) -> None:
        self._app, self._access, self._refuse = app, access, refuse

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Check a request, and hand it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = _one_of_each(scope["headers"])
        origin = None if headers is None else headers.get("origin")
        allowed_origin = origin if origin in self._access.origins else None
        checked = _Checked(self._access, send, allowed_origin)
        if headers is None:
            await self._answer(
                scope, checked, 400, "a header that may stand once stands twice (Host, Origin, Content-Length)"
            )
        elif refused := self._refusal(scope, headers):
            await self._answer(scope, checked, *refused)
        elif scope["method"] == "OPTIONS" and origin is not None and "access-control-request-method" in headers:
            await checked.send({"type": "http.response.start", "status": 204, "headers": _preflight(headers)})
            await checked.send({"type": "http.response.body", "body": b""})
        elif self._brings_token(scope):
            await self._set_cookie(checked)
        elif not self._is_open(scope) and not self._access.knows_token(headers):
            await self._answer(scope, checked, 401, "this server wants its token: Authorization: Bearer TOKEN")
        else:
            await self._hand_on(scope, receive, checked)

    def _refusal(self, scope: Any, headers: Mapping[str, str]) -> tuple[int, str] | None:
        host = headers.get("host")
        if not self._access.knows_host(host):
            return 403, f"this server is not called {host!r}; start it with --allow-host NAME if it should be"
        site, mode = headers.get("sec-fetch-site"), headers.get("sec-fetch-mode")
        mode = mode if scope["method"] in ("GET", "HEAD") else None
        if not self._access.knows_origin(headers.get("origin"), host or "", site, mode):
            origin = headers.get("origin", "another site")
            return 403, f"pages of {origin!r} may not ask this server; start it with --cors ORIGIN if they should"
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._access.max_body_bytes:
            return 413, f"the body is larger than this server takes ({self._access.max_body_bytes} bytes)"
        return None

    def _is_open(self, scope: Any) -> bool:
        """Whether a path says nothing that needs a token: that Ollama is running."""
        return bool(scope["path"] == "/" and scope["method"] == "HEAD")

    def _brings_token(self, scope: Any) -> bool:
        if not self._access.token or scope["path"] != "/" or scope["method"] != "GET":
            return False
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        return _same(str(given), self._access.token)

    async def _set_cookie(self, checked: _Checked) -> None:
        cookie = f"{COOKIE}={self._access.cookie}; Path=/; HttpOnly; SameSite=Strict"
        headers = [(b"location", b"/"), (b"set-cookie", cookie.encode())]
        await checked.send({"type": "http.response.start", "status": 303, "headers": headers})
        await checked.send({"type": "http.response.body", "body": b""})

    async def _hand_on(self, scope: Any, receive: Any, checked: _Checked) -> None:
        num_bytes = 0

        async def counted() -> Any:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._access.max_body_bytes:
                raise BodyTooLargeError
            return message

        try:
            await self._app(scope, counted, checked.send)
        except BodyTooLargeError:
            if not checked.has_begun:
                message = f"the body is larger than this server takes ({self._access.max_body_bytes} bytes)"
                await self._answer(scope, checked, 413, message)

    async def _answer(self, scope: Any, checked: _Checked, status: int, message: str) -> None:
        content_type, body = self._refuse(scope["path"], status, message)
        headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if status == 413:
            headers.append((b"connection", b"close"))
        await checked.send({"type": "http.response.start", "status": status, "headers": headers})
        body = b"" if scope["method"] == "HEAD" else body
        await checked.send({"type": "http.response.body", "body": body})


class _Checked:
    """`send` with the headers that every response has."""

    def __init__(self, access: Access, send: Any, origin: str | None) -> None:
        self._send, self._origin, self._varies = send, origin, bool(access.origins)
        self.has_begun = False

    async def send(self, message: Any) -> None:
        """Pass `message` on; the first with headers of ours."""
        if message["type"] == "http.response.start":
            self.has_begun = True
            given = list(message.get("headers", []))
            names = {name.lower() for name, _ in given}
            given += [(name, value) for name, value in _HEADERS.items() if name not in names]
            content_type = next((value for name, value in given if name.lower() == b"content-type"), b"")
            if content_type.startswith(b"text/html") and b"content-security-policy" not in names:
                given.append((b"content-security-policy", CONTENT_SECURITY_POLICY.encode()))
            if self._origin is not None:
                given.append((b"access-control-allow-origin", self._origin.encode()))
            if self._varies:
                given.append((b"vary", b"Origin"))
            message = {**message, "headers": given}
        await self._send(message)


def _preflight(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    wanted = headers.get("access-control-request-headers", "")
    return [
        (b"access-control-allow-methods", b"GET, HEAD, POST, DELETE"),
        (b"access-control-allow-headers", wanted.encode("latin-1")),
        (b"access-control-max-age", b"600"),
    ]


def _one_of_each(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str] | None:
    """Headers by name; None where one that may stand once stands twice."""
    found: dict[str, str] = {}
    for name, value in headers:
        key = name.decode("latin-1").lower()
        if key in found and key in ("host", "origin", "content-length", "authorization"):
            return None
        found[key] = f"{found[key]}; {value.decode('latin-1')}" if key in found else value.decode("latin-1")
    return found


def _host_of(header: str) -> str | None:
    """The name in a Host header, lower case, without its port and its brackets; None for what is none."""
    text = header.strip().lower()
    if text.startswith("["):
        name, closed, port = text[1:].partition("]")
        if not closed or (port and not (port.startswith(":") and port[1:].isdecimal())):
            return None
        return name if _address(name) is not None else None
    name, colon, port = text.partition(":")
    if (colon and not port.isdecimal()) or not name:
        return None
    name = name.removesuffix(".")
    return (
        name if name and all(part and all(c.isalnum() or c in "-_" for c in part) for part in name.split(".")) else None
    )


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return host.lower() in _LOOPBACK_NAMES or (address is not None and address.is_loopback)


def _cookie(header: str) -> str:
    try:
        cookie: SimpleCookie = SimpleCookie(header)
    except CookieError:
        return ""
    return cookie[COOKIE].value if COOKIE in cookie else ""


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(), wanted.encode())
