"""One leads at a time, and what an earlier leader still wants to do is refused."""

from __future__ import annotations

from tests.support.processes import wait_for
from tests.support.volume import Volume

NOT_LEADING = 1002


def lead(volume: Volume, who: bytes, ms: int = 60_000) -> int:
    (epoch,) = volume.call("lead", who=who, ms=ms)
    return int(epoch)


def test_one_leads_until_it_resigns_or_its_lease_ends(volume: Volume) -> None:
    assert lead(volume, b"a") == 1
    assert lead(volume, b"b") == 0
    assert lead(volume, b"a") == 1, "renewed: the same epoch"
    volume.call("resign", who=b"b")
    assert lead(volume, b"b") == 0
    volume.call("resign", who=b"a")
    assert lead(volume, b"b", ms=50) == 2
    wait_for(lambda: lead(volume, b"a"), "the lease has ended", 5)
    assert lead(volume, b"b") == 0


def test_work_of_an_earlier_epoch_is_refused(volume: Volume) -> None:
    """Of each kind of job; and nothing of it is done."""
    first = lead(volume, b"a")
    assert volume.reply("reap", 0, first, count=1)[0] == 0
    volume.call("resign", who=b"a")
    assert volume.reply("reap", 0, first, count=1)[0] == 0, "nobody else has led"
    second = lead(volume, b"b")
    for verb, arguments in (
        ("reap", {"count": 1}),
        ("expire_sessions", {"count": 1}),
        ("collect", {"extents": []}),
        ("deleted", {"gone": [], "left": [], "retry_ms": 1}),
    ):
        assert volume.reply(verb, 0, first, **arguments) == [NOT_LEADING]
        assert volume.reply(verb, 0, second, **arguments)[0] == 0
