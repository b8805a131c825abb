"""The window of a session's operations: how far they may run ahead of the oldest that has no answer."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Sequence
from typing import cast

import msgpack
import pytest
import trio
import trio.testing

from fusefs.metadata.client import RETRY_SECONDS_MAX, Kept, MetadataClient
from fusefs.settings import METADATA_DEADLINE_SECONDS
from servers.client.naming import SESSION_LOST, NamingClient
from servers.protocol.errors import Refused, SessionLost, TryAgain, Unavailable
from servers.protocol.ids import SessionNumber
from servers.protocol.limits import OP_WINDOW
from servers.protocol.naming_api import Operation

pytestmark = pytest.mark.anyio
Replies = tuple[list[bytes | None], bool]


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


class Naming:
    """Answers everything at once, but for the first operation of session 1, whose answer it holds back.

    In place of a server, because no real one keeps one operation for as long as hundreds of others take.
    """

    def __init__(self) -> None:
        self.release = trio.Event()

    async def batch(self, session: SessionNumber, operations: Sequence[Operation], **_: float) -> Replies:
        if session == 1 and operations[0].n == 1:
            await self.release.wait()
        return [msgpack.packb([0, session, o.n]) for o in operations], False


async def fill(client: MetadataClient, nursery: trio.Nursery) -> None:
    """As many operations as may run ahead of the first, which has no answer."""
    client.begin_session(SessionNumber(1))
    nursery.start_soon(client.ask, "mkdir")
    await trio.testing.wait_all_tasks_blocked()
    for _ in range(OP_WINDOW // 2):
        await client.ask("mkdir")


async def test_operations_wait_for_one_that_is_half_a_window_behind() -> None:
    naming = Naming()
    async with trio.open_nursery() as nursery:
        client = MetadataClient(cast(NamingClient, naming), nursery)
        await fill(client, nursery)
        with trio.move_on_after(0.2) as scope:
            await client.ask("mkdir")
        assert scope.cancelled_caught
        naming.release.set()
        with trio.fail_after(5):
            assert (await client.ask("mkdir"))[0] == 1


async def test_without_a_session_nothing_is_asked_but_for_one() -> None:
    """Reads neither: the naming server may have another volume."""
    async with trio.open_nursery() as nursery:
        client = MetadataClient(cast(NamingClient, Naming()), nursery)
        for verb in ("lookup", "mkdir", "session_renew"):
            with pytest.raises(SessionLost):
                await client.ask(verb)
        assert await client.ask("session_open") == [0, 0]


@pytest.mark.parametrize("is_answered", [True, False])
async def test_it_is_known_whether_a_lost_session_may_have_done_an_operation(is_answered: bool) -> None:
    """Not where the first server that was asked says that the session is over."""

    class Lost:
        tries = 0

        async def batch(self, session: SessionNumber, operations: Sequence[Operation], **_: float) -> Replies:
            self.tries += 1
            if self.tries == 1 and not is_answered:
                raise TryAgain("no answer")
            return [msgpack.packb([SESSION_LOST])], False

    async with trio.open_nursery() as nursery:
        client = MetadataClient(cast(NamingClient, Lost()), nursery)
        client.begin_session(SessionNumber(1))
        with pytest.raises(SessionLost) as raised:
            await client.ask("unlink")
        assert raised.value.perhaps_done == (not is_answered)


@pytest.mark.parametrize(
    ("verb", "session", "outcome"),
    [("getattr", 2, "asked again"), ("getattr", 0, "not done"), ("unlink", 2, "perhaps done"),
     ("session_renew", 2, "perhaps done")],
)  # fmt: skip
async def test_what_has_no_answer_as_its_session_ends_is_asked_again_where_it_only_reads(
    verb: str, session: int, outcome: str
) -> None:
    """At once, by the client itself: not all who read could begin another session. Without one nobody is asked."""

    class Lost:
        def __init__(self) -> None:
            self.asked: list[int] = []

        async def batch(self, number: SessionNumber, operations: Sequence[Operation], **_: float) -> Replies:
            self.asked.append(number)
            if number == 1:
                client.begin_session(SessionNumber(session))
                raise TryAgain("no answer")
            return [msgpack.packb([0, number]) for _ in operations], False

    naming = Lost()
    async with trio.open_nursery() as nursery:
        client = MetadataClient(cast(NamingClient, naming), nursery)
        client.begin_session(SessionNumber(1))
        if outcome == "asked again":
            assert await client.ask(verb) == [2]
            assert naming.asked == [1, 2]
        else:
            with pytest.raises(SessionLost) as raised:
                await client.ask(verb)
            assert raised.value.perhaps_done == (outcome == "perhaps done")
            assert naming.asked == [1]


async def test_a_new_session_lets_go_who_waited_for_the_old_one() -> None:
    naming = Naming()
    async with trio.open_nursery() as nursery:
        client = MetadataClient(cast(NamingClient, naming), nursery)
        await fill(client, nursery)

        async def ask_and_end() -> None:
            assert await client.ask("mkdir") == [2, 1]
            nursery.cancel_scope.cancel()

        nursery.start_soon(ask_and_end)
        await trio.testing.wait_all_tasks_blocked()
        client.begin_session(SessionNumber(2))
        with trio.fail_after(5):
            await trio.sleep_forever()


def test_the_next_operation_says_what_was_given_up_until_it_is_answered() -> None:
    """So that it does not take effect later; after that nobody needs to hear of it."""
    said: list[list[int]] = []

    class Silent:
        answers = False

        async def batch(self, session: int, operations: Sequence[Operation], **_: float) -> Replies:
            said.extend(msgpack.unpackb(o.arguments).get("given_up", []) for o in operations)
            return [msgpack.packb([0]) if self.answers else None for _ in operations], False

    async def body() -> None:
        naming = Silent()
        async with trio.open_nursery() as nursery:
            client = MetadataClient(cast(NamingClient, naming), nursery)
            client.begin_session(SessionNumber(1))
            for _ in range(2):
                with pytest.raises(Unavailable):
                    await client.ask("mkdir")
            naming.answers = True
            said.clear()
            await client.ask("mkdir")
            await client.ask("mkdir")

    trio.run(body, clock=trio.testing.MockClock(autojump_threshold=0))
    assert said == [[1, 2], []]


class Deaf:
    """Answers what it is told to; notes who asks, and what is said to be given up."""

    def __init__(self) -> None:
        self.reply: bytes | None = None
        self.is_repeated = False
        self.seen: list[tuple[int, list[int]]] = []

    async def batch(self, session: int, operations: Sequence[Operation], **_: float) -> Replies:
        for operation in operations:
            row = (operation.n, msgpack.unpackb(operation.arguments).get("given_up", []))
            if row not in self.seen[-1:]:
                self.seen.append(row)
        return [self.reply for _ in operations], self.is_repeated


def with_unanswered(body: Callable[[MetadataClient, Deaf, Kept], Awaitable[None]]) -> None:
    """Begins with an operation that is kept, and has no answer after its time."""

    async def main() -> None:
        naming, kept = Deaf(), Kept()
        async with trio.open_nursery() as nursery:
            client = MetadataClient(cast(NamingClient, naming), nursery)
            client.begin_session(SessionNumber(1))
            with pytest.raises(Unavailable):
                await client.ask_in(None, 5, "commit", kept=kept)
            assert kept.is_open
            await body(client, naming, kept)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


DONE, FULL = msgpack.packb([0, 7]), msgpack.packb([errno.ENOSPC])


def test_what_is_kept_is_asked_again_under_its_own_number_and_not_given_up() -> None:
    """A Redis that is full does not look at what it did before: its refusal tells nothing."""

    async def body(client: MetadataClient, naming: Deaf, kept: Kept) -> None:
        naming.reply = DONE
        await client.ask("mkdir")
        naming.reply = None
        with pytest.raises(Unavailable):
            await client.ask_again(kept, 5)
        naming.reply = FULL
        with pytest.raises(Refused):
            await client.ask_again(kept, 5)
        assert kept.is_open
        naming.reply = DONE
        assert await client.ask_again(kept, 5) == [7]
        assert not kept.is_open
        assert naming.seen == [(1, []), (2, []), (1, [])]

    with_unanswered(body)


def test_what_a_full_redis_refuses_at_once_is_answered() -> None:
    """It was never done: nobody waits for it, nor for its number."""

    async def body(client: MetadataClient, naming: Deaf, kept: Kept) -> None:
        naming.reply = FULL
        refused = Kept()
        with pytest.raises(Refused):
            await client.ask_in(None, 5, "commit", kept=refused)
        assert not refused.is_open

    with_unanswered(body)


@pytest.mark.parametrize("why", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_what_was_sent_to_another_server_before_is_not_ended_by_a_refusal_that_does_not_look_at_it(why: int) -> None:
    async def body(client: MetadataClient, naming: Deaf, kept: Kept) -> None:
        naming.reply, naming.is_repeated = msgpack.packb([why]), True
        doubtful = Kept()
        with pytest.raises(Refused):
            await client.ask_in(None, 5, "commit", kept=doubtful)
        assert doubtful.is_open
        naming.reply, naming.is_repeated = DONE, False
        assert await client.ask_again(doubtful, 5) == [7]
        assert not doubtful.is_open

    with_unanswered(body)


def test_what_is_withdrawn_is_given_up() -> None:
    async def body(client: MetadataClient, naming: Deaf, kept: Kept) -> None:
        naming.reply = DONE
        kept.withdraw()
        await client.ask("mkdir")
        assert naming.seen == [(1, []), (2, [1])]

    with_unanswered(body)


def test_operations_wait_for_one_that_is_kept_no_longer_than_their_time() -> None:
    """Its answer would be forgotten. It is asked for soon; until then others fail in time."""

    async def body(client: MetadataClient, naming: Deaf, kept: Kept) -> None:
        naming.reply = DONE
        for _ in range(OP_WINDOW // 2):
            await client.ask("mkdir")
        began = trio.current_time()
        with pytest.raises(Unavailable):
            await client.ask("mkdir")
        assert trio.current_time() - began < METADATA_DEADLINE_SECONDS + RETRY_SECONDS_MAX + 0.1
        for _ in range(OP_WINDOW // 8):
            await client.ask("unlink")  # Perhaps it waits for the room that this makes.
        await client.ask_again(kept, 5)
        await client.ask("mkdir")

    with_unanswered(body)
