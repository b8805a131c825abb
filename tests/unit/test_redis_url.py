"""REDIS_URL is read as README says, and refused with words that help."""

from __future__ import annotations

import pytest

from servers.naming.redis_url import Endpoint, RedisPlace, parse_redis_url


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("redis://redis:6379/0", RedisPlace("one", (Endpoint("redis", 6379),))),
        ("redis://redis", RedisPlace("one", (Endpoint("redis", 6379),))),
        ("redis://:pa%2Fss@[::1]:7/3", RedisPlace("one", (Endpoint("::1", 7),), db=3, password="pa/ss")),
        ("redis://[::1]?db=2", RedisPlace("one", (Endpoint("::1", 6379),), db=2)),
        ("unix:///run/redis.sock?db=2", RedisPlace("one", path="/run/redis.sock", db=2)),
        ("unix://me:secret@/r.sock", RedisPlace("one", path="/r.sock", username="me", password="secret")),
        (
            "redis+sentinel://me:secret@s1,s2:5000,[::1]:6/dcs/4",
            RedisPlace(
                "sentinel", (Endpoint("s1", 26379), Endpoint("s2", 5000), Endpoint("::1", 6)),
                service="dcs", db=4, username="me", password="secret",
            ),
        ),
        ("redis+sentinel://s1/dcs", RedisPlace("sentinel", (Endpoint("s1", 26379),), service="dcs")),
        ("redis+cluster://a:1,b", RedisPlace("cluster", (Endpoint("a", 1), Endpoint("b", 6379)))),
        ("redis+cluster://:x@a/0", RedisPlace("cluster", (Endpoint("a", 6379),), password="x")),
    ],
)  # fmt: skip
def test_a_url_says_where_redis_is(url: str, place: RedisPlace) -> None:
    assert parse_redis_url(url) == place


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "is wanted"),
        ("redis", "is wanted"),
        ("http://:secret@x", "not http://"),
        ("rediss://:secret@x", "not rediss://"),
        ("redis://:secret@", "host:port is wanted"),
        ("redis://:secret@x:port", "'x:port'"),
        ("redis://:secret@x:70000", "'x:70000'"),
        ("redis://:secret@x/db", "'db'"),
        ("redis://:secret@a,b/0", "redis+sentinel://"),
        ("unix://:secret@run/redis.sock", "unix:///path"),
        ("redis+sentinel://:secret@a:1,b:2", "/SERVICE"),
        ("redis+sentinel://:secret@a:1,/dcs", "host:port is wanted"),
        ("redis+sentinel://:secret@a/dcs/0/1", "/SERVICE"),
        ("redis+cluster://:secret@a:1/1", "no databases but 0"),
    ],
)
def test_a_url_that_cannot_be_is_refused_without_its_password(url: str, words: str) -> None:
    with pytest.raises(ValueError, match="REDIS_URL: ") as refused:
        parse_redis_url(url)
    assert words in str(refused.value)
    assert "secret" not in str(refused.value)
