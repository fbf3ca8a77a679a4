# SPDX-License-Identifier: Apache-2.0
"""routes.c: the guessed route of a path; the table at the top of that file, and its limits."""

from __future__ import annotations

import base64
import random
import struct
import uuid

import pytest

from tests.contract import driver


def match(*paths: str, cap: int = 1000, room: int = 223) -> list[str]:
    packed = b"".join(struct.pack("<I", len(path.encode())) + path.encode() for path in paths)
    return driver().call(b"M", struct.pack("<II", cap, room), packed)


@pytest.mark.parametrize(("path", "route"), [
    ("/", "/"),
    ("", "/"),
    ("/users", "/users"),
    ("/users/42/orders", "/users/{id}/orders"),
    ("/users/42/", "/users/{id}"),
    ("//users///42", "/users/{id}"),
    ("/o/ORD-10042/a3f9-11ec-be5f", "/o/{id}/{id}"),
    ("/by-date/2026-11-21", "/by-date/{id}"),
    ("/by-address/10.0.0.1", "/by-address/{id}"),
    ("/s/V1StGXR8_Z5jdHi6B-myT", "/s/{id}"),
    ("/commit/deadbee1", "/commit/{id}"),
    ("/mail/ann@example.com", "/mail/{id}"),
    ("/tag/caf%C3%A9", "/tag/{id}"),
    ("/tag/caf\u00e9", "/tag/{id}"),
    ("/" + "x" * 64, "/" + "x" * 64),
    ("/" + "x" * 65, "/{id}"),
    ("/static/app.3f9a2b1c.js", "/static/{file}.js"),
    ("/static/logo.woff2", "/static/{file}.woff2"),
    ("/reports/2024.pdf", "/reports/{id}.pdf"),
    ("/index.html", "/index.html"),
    ("/.well-known/openid-configuration", "/.well-known/openid-configuration"),
    ("/app.js/x", "/app.js/x"),
    ("/api/v2/oauth2/token", "/api/v2/oauth2/token"),
    ("/facade/decade", "/facade/decade"),
    ("/getUserAccountSettings", "/getUserAccountSettings"),
    ("/a;jsessionid=1/b/", "/a/b"),
    ("/a/b/c/d/e/f/g/h", "/a/b/c/d/e/f/g/h"),
    ("/a/b/c/d/e/f/g/h/i/j", "/a/b/c/d/e/f/g/h/*"),
])  # fmt: skip
def test_route_of(path: str, route: str) -> None:
    assert match(path) == [route]


def test_generated_ids_are_ids() -> None:
    rng = random.Random(23)
    uuids = [str(uuid.UUID(int=rng.getrandbits(128), version=4)) for _ in range(500)]
    hashes = [rng.randbytes(20).hex() for _ in range(500)]
    assert set(match(*[f"/x/{text}" for text in uuids + hashes])) == {"/x/{id}"}


def test_most_random_tokens_are_ids() -> None:
    """128 bits in base64: a sixth of them has digits in no two places and counts against the cap."""
    rng = random.Random(23)
    tokens = [base64.urlsafe_b64encode(rng.randbytes(16)).rstrip(b"=").decode() for _ in range(1000)]
    assert match(*[f"/x/{token}" for token in tokens]).count("/x/{id}") > 800


def test_at_the_cap_known_routes_stay_and_new_ones_are_none() -> None:
    paths = [f"/route-{letter}" for letter in "abcdefgh"]
    assert match(*paths, *paths, cap=5) == (paths[:5] + [""] * 3) * 2


def test_no_route_at_a_cap_of_none() -> None:
    assert match("/a", "/", cap=0) == ["", ""]


def test_a_route_longer_than_the_room_ends_in_a_star() -> None:
    assert match("/users/42/orders", room=13) == ["/users/{id}/*"]
    assert match("/users/42/orders", room=12) == ["/users/*"]
    assert match("/users", room=2) == ["/*"]
    assert match("/users", room=1) == [""]


def test_any_bytes_end() -> None:
    rng = random.Random(23)
    for _ in range(300):
        path = "".join(rng.choice("/ab12.;@%-\u00e9{}") for _ in range(rng.randrange(300)))
        (route,) = match(path)
        assert len(route) <= 223 and route.isascii()
