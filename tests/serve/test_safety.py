"""Who may ask: hosts, origins and tokens in a table, and what is too large."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from tests.doubles.served import Server

from tuneful.errors import ConfigError
from tuneful.serve.errors import refused
from tuneful.serve.safety import CONTENT_SECURITY_POLICY, COOKIE, Access, Guard

HERE = "127.0.0.1:8080"
LOCAL = Access()
NAMED = Access(allowed_hosts=("host.docker.internal",), origins=("https://app.example",))
OPEN = Access(host="0.0.0.0", token="a-long-token", allowed_hosts=("models.lan",))


async def inner(scope: Any, receive: Any, send: Any) -> None:
    """Reads the body and says `hello` as a page."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
    await send({"type": "http.response.body", "body": b"hello"})


def asked(
    access: Access, headers: Any, method: str = "GET", path: str = "/api/tags", bodies: Any = (b"",), query: str = ""
):
    """(status, headers, body) of a request with these headers, a dict or a list of pairs."""
    pairs = list(headers.items()) if isinstance(headers, dict) else headers
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in pairs],
    }
    sent: list[Any] = []
    coming = [{"type": "http.request", "body": one, "more_body": True} for one in bodies]
    coming[-1]["more_body"] = False

    async def receive() -> Any:
        return coming.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Guard(inner, access, refused)(scope, receive, send))
    given = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], given, b"".join(one.get("body", b"") for one in sent[1:])


BEARER = {"Authorization": "Bearer a-long-token"}
TABLE = [
    # access, Host, further headers, status
    (LOCAL, HERE, {}, 200),
    (LOCAL, "localhost:8080", {}, 200),
    (LOCAL, "LOCALHOST:8080", {}, 200),
    (LOCAL, "localhost", {}, 200),
    (LOCAL, "localhost.:8080", {}, 200),
    (LOCAL, "[::1]:8080", {}, 200),
    (LOCAL, "[::1]", {}, 200),
    (LOCAL, "127.0.0.2", {}, 200),
    (LOCAL, "127.0.0.1:49152", {}, 200),  # a port that is passed on from another
    (LOCAL, "evil.example", {}, 403),
    (LOCAL, "evil.example:8080", {}, 403),
    (LOCAL, "localhost.evil.example", {}, 403),
    (LOCAL, "127.0.0.1.evil.example", {}, 403),
    (LOCAL, "evil.example#localhost", {}, 403),
    (LOCAL, "localhost@evil.example", {}, 403),
    (LOCAL, "evil.example/localhost", {}, 403),
    (LOCAL, "localhost:8080:80", {}, 403),
    (LOCAL, "localhost:evil", {}, 403),
    (LOCAL, "", {}, 403),
    (LOCAL, None, {}, 403),
    (LOCAL, "0.0.0.0:8080", {}, 403),
    (LOCAL, "192.168.1.5:8080", {}, 403),
    (LOCAL, "169.254.169.254", {}, 403),
    (LOCAL, "[::]", {}, 403),
    (LOCAL, "[::1", {}, 403),
    (LOCAL, "[evil.example]", {}, 403),
    (LOCAL, "[::1].evil.example", {}, 403),
    (LOCAL, "2130706433", {}, 403),
    (LOCAL, "host.docker.internal:8080", {}, 403),
    (NAMED, "host.docker.internal:8080", {}, 200),
    (NAMED, "HOST.docker.internal", {}, 200),
    (NAMED, "x.host.docker.internal", {}, 403),
    (NAMED, "docker.internal", {}, 403),
    (NAMED, HERE, {}, 200),
    (LOCAL, HERE, {"Origin": "http://127.0.0.1:8080"}, 200),
    (LOCAL, "localhost:8080", {"Origin": "http://localhost:8080"}, 200),
    (LOCAL, HERE, {"Origin": "http://localhost:8080"}, 403),  # another origin, to a browser
    (LOCAL, HERE, {"Origin": "http://127.0.0.1:3000"}, 403),
    (LOCAL, HERE, {"Origin": "http://127.0.0.1"}, 403),
    (LOCAL, HERE, {"Origin": "https://evil.example"}, 403),
    (LOCAL, HERE, {"Origin": "null"}, 403),
    (LOCAL, HERE, {"Origin": ""}, 403),
    (LOCAL, HERE, {"Origin": "file://"}, 403),
    (LOCAL, HERE, {"Origin": "chrome-extension://abc"}, 403),
    (LOCAL, HERE, {"Origin": "http://127.0.0.1:8080.evil.example"}, 403),
    (LOCAL, HERE, {"Origin": "http://evil.example?127.0.0.1:8080"}, 403),
    (LOCAL, "evil.example", {"Origin": "http://evil.example"}, 403),
    (LOCAL, HERE, {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
    (LOCAL, HERE, {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"}, 403),
    (LOCAL, HERE, {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}, 200),
    (LOCAL, HERE, {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}, 200),
    (LOCAL, HERE, {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),  # a link to the page
    (NAMED, HERE, {"Origin": "https://app.example"}, 200),
    (NAMED, HERE, {"Origin": "http://app.example"}, 403),
    (NAMED, HERE, {"Origin": "https://app.example.evil"}, 403),
    (NAMED, HERE, {"Origin": "https://app.example", "Sec-Fetch-Site": "cross-site"}, 200),
    (OPEN, "192.168.1.5:8080", BEARER, 200),
    (OPEN, "[fe80::1]:8080", BEARER, 200),
    (OPEN, "models.lan", BEARER, 200),
    (OPEN, "0.0.0.0:8080", BEARER, 403),
    (OPEN, "evil.example", BEARER, 403),
    (OPEN, "192.168.1.5", {}, 401),
    (OPEN, "192.168.1.5", {"Authorization": "Bearer wrong-token"}, 401),
    (OPEN, "192.168.1.5", {"Authorization": "Basic a-long-token"}, 401),
    (OPEN, "192.168.1.5", {"Authorization": "bearer a-long-token"}, 200),
    (OPEN, "192.168.1.5", {"Authorization": "a-long-token"}, 401),
    (OPEN, "192.168.1.5", {"Cookie": f"other=1; {COOKIE}={OPEN.cookie}"}, 200),
    (OPEN, "192.168.1.5", {"Cookie": f"{COOKIE}=a-long-token"}, 401),
    (OPEN, "192.168.1.5", {"Cookie": f"{COOKIE}={OPEN.cookie}", "Origin": "https://evil.example"}, 403),
]


@pytest.mark.parametrize(("access", "host", "headers", "status"), TABLE)
def test_hosts_origins_and_tokens(access, host, headers, status):
    given = {**({} if host is None else {"Host": host}), **headers}
    found, answered, body = asked(access, given)
    assert found == status
    assert answered["x-content-type-options"] == "nosniff"
    if status == 200:
        assert body == b"hello"
    else:
        assert list(json.loads(body)) == ["error"]


def test_the_table_is_long_enough():
    assert len(TABLE) >= 60


@pytest.mark.parametrize("name", ["Host", "Origin", "Content-Length", "Authorization"])
def test_a_header_that_stands_twice_is_refused(name):
    value = {"Host": HERE, "Origin": f"http://{HERE}", "Content-Length": "0", "Authorization": "Bearer x"}[name]
    pairs = [("Host", HERE), (name, value)] if name == "Host" else [("Host", HERE), (name, value), (name, value)]
    assert asked(LOCAL, pairs)[0] == 400


def test_only_a_named_origin_may_read_answers_and_is_told_so_before_it_asks():
    preflight = {"Host": HERE, "Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    status, headers, _ = asked(NAMED, {**preflight, "Access-Control-Request-Headers": "authorization"}, "OPTIONS")
    assert (status, headers["access-control-allow-origin"]) == (204, "https://app.example")
    assert headers["access-control-allow-headers"] == "authorization"
    _, headers, _ = asked(NAMED, {"Host": HERE, "Origin": "https://app.example"})
    assert headers["access-control-allow-origin"] == "https://app.example"
    assert headers["vary"] == "Origin"
    for access in (LOCAL, NAMED):
        _, headers, _ = asked(access, {"Host": HERE})
        assert "access-control-allow-origin" not in headers
    assert asked(LOCAL, preflight, "OPTIONS")[0] == 403


def test_html_may_load_from_here_alone():
    _, headers, _ = asked(LOCAL, {"Host": HERE})
    assert headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert "default-src 'none'" in CONTENT_SECURITY_POLICY


def test_the_address_with_the_token_sets_a_cookie_that_is_not_the_token():
    status, headers, _ = asked(OPEN, {"Host": "192.168.1.5"}, path="/", query="token=a-long-token")
    assert (status, headers["location"]) == (303, "/")
    assert "HttpOnly" in headers["set-cookie"]
    assert "SameSite=Strict" in headers["set-cookie"]
    assert "a-long-token" not in headers["set-cookie"]
    cookie = headers["set-cookie"].partition(";")[0]
    assert asked(OPEN, {"Host": "192.168.1.5", "Cookie": cookie})[0] == 200
    assert asked(OPEN, {"Host": "192.168.1.5"}, path="/", query="token=wrong")[0] == 401


@pytest.mark.parametrize(
    ("headers", "bodies", "status"),
    [
        ({"Content-Length": "100"}, [b"x" * 100], 200),
        ({"Content-Length": "101"}, [b"x" * 101], 413),
        ({"Content-Length": "1e9"}, [b"x"], 413),
        ({"Content-Length": "-1"}, [b"x"], 413),
        ({}, [b"x" * 60, b"x" * 60], 413),  # chunked: nothing is said of its length
        ({}, [b"x" * 50, b"x" * 50], 200),
    ],
)
def test_a_body_over_the_limit_is_refused(headers, bodies, status):
    access = Access(max_body_bytes=100)
    assert asked(access, {"Host": HERE, **headers}, "POST", "/v1/completions", bodies)[0] == status


@pytest.mark.parametrize(
    ("access", "words"),
    [
        (Access(host="0.0.0.0"), "--token"),
        (Access(host="192.168.1.5"), "--token"),
        (Access(host="::"), "--token"),
        (Access(token="short"), "--token"),
        (Access(token="with a space in it"), "--token"),
        (Access(allowed_hosts=("*",)), "--allow-host"),
        (Access(allowed_hosts=("http://a.example",)), "--allow-host"),
        (Access(origins=("*",)), "--cors"),
        (Access(origins=("https://a.example/path",)), "--cors"),
        (Access(origins=("null",)), "--cors"),
    ],
)
def test_what_would_be_unsafe_or_means_nothing_is_refused_at_the_start(access, words):
    with pytest.raises(ConfigError, match=words):
        access.check()


def test_what_is_safe_is_not():
    for access in (LOCAL, NAMED, OPEN, Access(host="::1"), Access(host="localhost")):
        access.check()


def test_a_server_that_wants_a_token_says_so_in_the_words_of_the_protocol(models):
    import httpx

    with Server(models, Access(token="a-long-token")) as server:
        given = httpx.get(server.url + "/v1/models")
        assert (given.status_code, given.json()["error"]["type"]) == (401, "authentication_error")
        assert given.headers["www-authenticate"] == "Bearer"
        assert httpx.get(server.url + "/v1/models", headers=BEARER).status_code == 200
        assert isinstance(httpx.get(server.url + "/api/tags").json()["error"], str)
        assert httpx.head(server.url + "/").status_code == 200
