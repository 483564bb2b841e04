"""A member that does not keep to the protocol harms its own connection and nothing else."""

from __future__ import annotations

import asyncio
import multiprocessing
import queue
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

import grpc
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from link.coordinator import LinkGrid
from link.frames import ANSWER_ROOM, Limits, Packer, Parcel
from link.generated import link_pb2 as pb
from link.greeting import SessionEnded, Stream
from link.listener import METHOD, SERVICE
from link.loop import submit
from link.member import Hospital
from link.session import Pace, Session
from link.tls import Credentials
from link.transfers import Shelf
from tests.link.federation_of_certificates import PATIENCE_S, Federation, federation, wait_until
from trust.identity import Identity

HELLO = pb.Frame(hello=pb.Hello(protocol=1, instance="raw"))


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Federation]:
    with federation(tmp_path) as made:
        yield made


class Peer:
    """A hospital that says whatever the test wants."""

    def __init__(self, there: Federation, name: str = "alpha", *, greet: bool = True) -> None:
        mine = there.authority.member(name)
        self._channel = grpc.secure_channel(
            f"127.0.0.1:{there.port}",
            grpc.ssl_channel_credentials(mine.authorities, mine.key, mine.certificate),
            options=[("grpc.use_local_subchannel_pool", 1)],
        )
        self._out: queue.Queue[bytes | None] = queue.Queue()
        self._call = self._channel.stream_stream(f"/{SERVICE}/{METHOD}")(iter(self._out.get, None))
        if greet:
            self.say(HELLO)
            assert self.hear("hello").hello.protocol == 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._out.put(None)
        self._call.cancel()
        self._channel.close()

    def say(self, *frames: pb.Frame | bytes) -> None:
        for frame in frames:
            self._out.put(frame if isinstance(frame, bytes) else frame.SerializeToString())

    def hear(self, kind: str) -> pb.Frame:
        """The next frame of a kind; others are passed over."""
        for data in self._call:
            frame = pb.Frame()
            frame.ParseFromString(data)
            if frame.WhichOneof("kind") == kind:
                return frame
        raise AssertionError("the coordinator closed")

    def ended(self) -> str:
        """The text with which the coordinator ends the connection."""
        with pytest.raises(grpc.RpcError) as ended:
            for _ in self._call:
                pass
        return str(ended.value.details())


def offer(parcel: Parcel, number: int = 1, *, inline: bool = True) -> pb.Frame:
    body = parcel.part(0, parcel.total) if inline else b""
    return pb.Frame(offer=pb.Offer(number=number, header=parcel.header, body=body))


def chunk(parcel: Parcel, offset: int, size: int, number: int = 1) -> pb.Frame:
    return pb.Frame(chunk=pb.Chunk(number=number, offset=offset, data=parcel.part(offset, size)))


def update(values: int = 10) -> RecordDict:
    return RecordDict({"update": ArrayRecord({"w": Array(np.arange(values, dtype=np.float32))})})


def asked(there: Federation, peer: Peer) -> tuple[LinkGrid, Message]:
    """A question of the coordinator, which the peer has taken."""
    grid = LinkGrid(there.server)
    (node,) = grid.get_node_ids()
    message = Message(RecordDict({"c": ConfigRecord({"x": 1})}), node, "train")
    grid.push_messages([message])
    number = peer.hear("offer").offer.number
    peer.say(pb.Frame(received=pb.Received(number=number)))
    return grid, message


def reply_to(question: str, content: RecordDict | None = None, id_: str = "r-1") -> Parcel:
    from link.flower import received_message

    request = received_message(
        RecordDict(), message_id=question, message_type="train", group_id="", node_id=5, created_at=0, ttl=60
    )
    return Packer().reply(id_, question, Message(content or update(), reply_to=request))


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([b"\xff\xff\xff"], "protocol_violated"),
        ([pb.Frame(beat=pb.Beat())], "protocol_violated"),
        ([pb.Frame(hello=pb.Hello(protocol=2))], "protocol_version"),
    ],
)
def test_whoever_does_not_greet_as_agreed_is_sent_away(
    there: Federation, frames: list[pb.Frame | bytes], code: str
) -> None:
    with Peer(there, greet=False) as peer:
        peer.say(*frames)
        assert peer.ended() == code
    assert there.server.connected() == {}


def test_whoever_does_not_greet_at_all_is_sent_away(tmp_path: Path) -> None:
    with federation(tmp_path, greet_s=1.0) as there, Peer(there, greet=False) as peer:
        assert peer.ended() == "silent"
        assert there.server.connected() == {}


LONG = reply_to("q", update(100_000))

OUT_OF_TURN: dict[str, list[pb.Frame | bytes]] = {
    "a second greeting": [HELLO],
    "bytes that are no frame": [b"\xff\xff\xff"],
    "an empty frame": [pb.Frame()],
    "a chunk without an offer": [chunk(LONG, 0, 100)],
    "a wish for nothing": [pb.Frame(want=pb.Want(number=1, offset=0))],
    "word of nothing": [pb.Frame(received=pb.Received(number=1))],
    "a refusal of nothing": [pb.Frame(refused=pb.Refused(number=1, code="x"))],
    "an offer with a number that was left out": [offer(reply_to("q"), number=2)],
    "an offer twice": [offer(reply_to("q")), offer(reply_to("q"))],
}


@pytest.mark.parametrize("what", sorted(OUT_OF_TURN))
def test_what_is_out_of_turn_ends_the_connection(there: Federation, what: str) -> None:
    with Peer(there) as peer:
        peer.say(*OUT_OF_TURN[what])
        assert peer.ended() == "protocol_violated"
    assert there.wait_for("disconnected", "alpha", "protocol_violated")


TRANSFERS: dict[str, Callable[[Parcel], list[pb.Frame]]] = {
    "a chunk twice": lambda parcel: [chunk(parcel, 0, 100), chunk(parcel, 0, 100)],
    "chunks in another order": lambda parcel: [chunk(parcel, 100, 100), chunk(parcel, 0, 100)],
    "a chunk of another parcel": lambda parcel: [chunk(parcel, 0, 100, number=2)],
    "an empty chunk": lambda parcel: [chunk(parcel, 0, 0)],
    "more than the declared total": lambda parcel: [
        pb.Frame(chunk=pb.Chunk(number=1, offset=0, data=bytes(parcel.total + 1)))
    ],
    "another offer in between": lambda parcel: [chunk(parcel, 0, 100), offer(parcel, 2, inline=False)],
}


@pytest.mark.parametrize("what", sorted(TRANSFERS))
def test_a_transfer_out_of_turn_ends_the_connection_and_can_be_made_good(
    there: Federation, what: str
) -> None:
    with Peer(there) as peer:
        grid, message = asked(there, peer)
        parcel = reply_to(message.metadata.message_id, update(100_000))
        peer.say(offer(parcel, inline=False))
        assert peer.hear("want").want.offset == 0
        peer.say(*TRANSFERS[what](parcel))
        assert peer.ended() == "protocol_violated"
    with Peer(there) as peer:
        peer.say(offer(parcel, inline=False))
        offset = peer.hear("want").want.offset
        assert offset in (0, 100)
        peer.say(chunk(parcel, offset, parcel.total))
        peer.hear("received")
    (reply,) = grid.pull_messages([message.metadata.message_id])
    np.testing.assert_array_equal(
        reply.content.array_records["update"]["w"].numpy(), np.arange(100_000, dtype=np.float32)
    )


@pytest.mark.parametrize("inline", [True, False])
def test_a_body_of_another_hash_is_refused_and_ends_its_question(there: Federation, inline: bool) -> None:
    with Peer(there) as peer:
        grid, message = asked(there, peer)
        parcel = reply_to(message.metadata.message_id, update(100 if inline else 100_000))
        wrong = bytes(parcel.total)
        if inline:
            peer.say(pb.Frame(offer=pb.Offer(number=1, header=parcel.header, body=wrong)))
        else:
            peer.say(offer(parcel, inline=False))
            assert peer.hear("want").want.offset == 0
            peer.say(pb.Frame(chunk=pb.Chunk(number=1, offset=0, data=wrong)))
        assert peer.hear("refused").refused.code == "bad_body"
        (reply,) = _pull(grid, message)
        assert reply.has_error()
        assert there.wait_for("refused", "alpha", "bad_body")
        assert list((there.root / "coordinator" / "alpha").iterdir()) == []


def _pull(grid: LinkGrid, message: Message) -> list[Message]:
    ids = [message.metadata.message_id]
    assert grid.wait_for_replies(ids, PATIENCE_S) == ids
    return list(grid.pull_messages(ids))


def test_a_damaged_partial_file_is_asked_for_anew(there: Federation) -> None:
    with Peer(there) as peer:
        grid, message = asked(there, peer)
        parcel = reply_to(message.metadata.message_id, update(100_000))
        peer.say(offer(parcel, inline=False))
        peer.hear("want")
        peer.say(chunk(parcel, 0, 200_000))
        (part,) = (there.root / "coordinator" / "alpha").iterdir()
        wait_until(lambda: part.stat().st_size >= 200_000)
    assert there.wait_for("disconnected", "alpha")
    data = bytearray(part.read_bytes())
    assert len(data) == 200_000
    data[1000] ^= 1
    part.write_bytes(data)
    with Peer(there) as peer:
        peer.say(offer(parcel, inline=False))
        assert peer.hear("want").want.offset == 200_000
        peer.say(chunk(parcel, 200_000, 100_000), chunk(parcel, 300_000, 100_000))
        assert peer.hear("want").want.offset == 0
        peer.say(chunk(parcel, 0, parcel.total))
        peer.hear("received")
    (reply,) = _pull(grid, message)
    assert reply.content.array_records["update"]["w"].numpy()[-1] == 99_999


def test_an_answer_comes_from_whom_was_asked_whoever_else_sends_one(there: Federation) -> None:
    with Peer(there, "alpha") as alpha:
        grid, message = asked(there, alpha)
        parcel = reply_to(message.metadata.message_id)
        with Peer(there, "beta") as beta:
            beta.say(offer(parcel))
            assert beta.hear("refused").refused.code == "unknown_question"
        assert list(grid.pull_messages([message.metadata.message_id])) == []
        alpha.say(offer(parcel))
        alpha.hear("received")
        (reply,) = _pull(grid, message)
        assert reply.metadata.src_node_id == message.metadata.dst_node_id


def test_a_replayed_answer_counts_once(there: Federation) -> None:
    with Peer(there) as peer:
        grid, message = asked(there, peer)
        question = message.metadata.message_id
        peer.say(offer(reply_to(question)))
        peer.hear("received")
        assert len(_pull(grid, message)) == 1
        peer.say(offer(reply_to(question, update(3), "r-2"), 2))
        peer.hear("received")
        assert list(grid.pull_messages([question])) == []
        assert there.wait_for("repeated_answer", "alpha")


@pytest.mark.parametrize(
    ("kind", "code"),
    [(pb.Header.REQUEST, "foreign_kind"), (pb.Header.RESULT, "foreign_kind"), (pb.Header.CALL, "no_service")],
)
def test_a_hospital_neither_asks_as_a_coordinator_does_nor_calls_what_is_not_served(
    there: Federation, kind: pb.Header.Kind, code: str
) -> None:
    with Peer(there) as peer:
        header = pb.Header(kind=kind, id="x", type="train").SerializeToString()
        peer.say(pb.Frame(offer=pb.Offer(number=1, header=header)))
        assert peer.hear("refused").refused.code == code
        peer.say(pb.Frame(offer=pb.Offer(number=2, header=b"\xff" * 50)))
        assert peer.hear("refused").refused.code == "bad_header"
        assert "alpha" in there.server.connected()


def test_a_declared_terabyte_is_refused_before_it_takes_memory_or_disk(there: Federation) -> None:
    with Peer(there) as peer:
        grid, message = asked(there, peer)
        header = pb.Header()
        header.ParseFromString(reply_to(message.metadata.message_id).header)
        info = header.records[0].arrays.entries[0]
        info.shape[0] = 1 << 38
        header.total = 1 << 40
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peer.say(pb.Frame(offer=pb.Offer(number=1, header=header.SerializeToString())))
        assert peer.hear("refused").refused.code == "too_large"
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB
        peer.say(offer(reply_to(message.metadata.message_id), 2))
        peer.hear("received")
        (reply,) = _pull(grid, message)
        assert reply.has_content()


def test_an_answer_weighs_no_more_than_its_question_lets_it(there: Federation) -> None:
    with Peer(there) as peer:
        for number, (values, code) in enumerate([(10_000, ""), (300_000, "too_large")], start=1):
            grid, message = asked(there, peer)
            parcel = reply_to(message.metadata.message_id, update(values), f"r-{number}")
            peer.say(offer(parcel, number, inline=not code))
            if code:
                assert peer.hear("refused").refused.code == code
                assert not list((there.root / "coordinator" / "alpha").iterdir())
            (reply,) = _pull(grid, message)
            assert reply.has_content() is not bool(code)
        carries_a_model = Packer().request(Message(update(300_000), message.metadata.dst_node_id, "train"))
        assert carries_a_model.answer_bytes == carries_a_model.total + ANSWER_ROOM


def test_a_hospital_that_fetches_no_result_has_few_calls_and_a_long_result_is_in_memory_once(
    tmp_path: Path,
) -> None:
    served: list[str] = []

    def serve(kind: str, site: str, payload: bytes) -> bytes:
        served.append(site)
        return bytes(5_000_000)  # a new object for each

    with federation(tmp_path, serve=serve) as there, Peer(there) as alpha, Peer(there, "beta") as beta:
        for peer, name in ((alpha, "alpha"), (beta, "beta")):
            for number in range(1, 7):
                peer.say(offer(Packer().call(f"{name}-{number}", "model", b""), number))
                if number <= there.limits.calls:
                    peer.hear("received")
                else:
                    assert peer.hear("refused").refused.code == "too_many"
        most = 2 * there.limits.calls
        wait_until(lambda: sum(len(site.mailbox.replies) for site in there.server._sites.values()) == most)
        assert sorted(served) == ["alpha"] * 4 + ["beta"] * 4
        parcels = [
            parcel for site in there.server._sites.values() for parcel in site.mailbox.replies.values()
        ]
        assert {parcel.total for parcel in parcels} == {5_000_000}
        assert len({id(parcel.pieces[0].obj) for parcel in parcels}) == 1


def _send_one_frame(address: str, mine: tuple[bytes, bytes, bytes], size: int, done: object) -> None:
    """In a process of its own, so that what it sends is not in the coordinator's memory."""
    import link.tls  # noqa: F401  before gRPC's ciphers are read

    key, certificate, authorities = mine
    channel = grpc.secure_channel(
        address,
        grpc.ssl_channel_credentials(authorities, key, certificate),
        options=[("grpc.max_send_message_length", -1)],
    )
    call = channel.stream_stream(f"/{SERVICE}/{METHOD}")(iter([HELLO.SerializeToString(), bytes(size)]))
    try:
        for _ in call:
            pass
    except grpc.RpcError as error:
        done.put(str(error.code()))  # type: ignore[attr-defined]  # a queue of multiprocessing


def test_a_frame_of_300_megabytes_is_refused_by_its_length_and_not_read(there: Federation) -> None:
    mine: Credentials = there.authority.member("alpha")
    spawn = multiprocessing.get_context("spawn")
    done = spawn.Queue()
    shown = (mine.key, mine.certificate, mine.authorities)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    process = spawn.Process(
        target=_send_one_frame, args=(f"127.0.0.1:{there.port}", shown, 300 << 20, done), daemon=True
    )
    process.start()
    assert "StatusCode" in done.get(timeout=2 * PATIENCE_S)
    process.join(PATIENCE_S)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000  # KiB
    assert there.wait_for("disconnected", "alpha")


def test_bytes_before_authentication_are_not_taken(there: Federation) -> None:
    sent = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with suppress(OSError), socket.create_connection(("127.0.0.1", there.port), 5) as plain:
        while sent < 1 << 30:
            sent += plain.send(bytes(1 << 20))
    assert sent < 16 << 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000  # KiB


def test_a_hospital_that_misbehaves_does_not_hold_up_another(there: Federation) -> None:
    there.hospital("beta", lambda message: Message(message.content, reply_to=message))
    with Peer(there, "alpha") as peer:
        grid = LinkGrid(there.server, ["beta"])
        stop = threading.Event()

        def chatter() -> None:
            while not stop.is_set():
                peer.say(pb.Frame(beat=pb.Beat(head=b"x" * 1000)))
                stop.wait(0.001)

        talking = threading.Thread(target=chatter)
        talking.start()
        try:
            (node,) = grid.get_node_ids()
            for _ in range(10):
                (reply,) = grid.send_and_receive([Message(update(), node, "train")], timeout=PATIENCE_S)
                assert reply.has_content()
        finally:
            stop.set()
            talking.join()


def test_a_call_with_a_long_body_is_refused_before_it_is_read(tmp_path: Path) -> None:
    asked_of: list[int] = []

    def serve(_: str, __: str, payload: bytes) -> bytes:
        asked_of.append(len(payload))
        return b""

    with federation(tmp_path, serve=serve) as there, Peer(there) as peer:
        long, short = (Packer().call(f"c-{size}", "renew", bytes(size)) for size in (100_000, 1000))
        peer.say(offer(long, 1, inline=False))
        assert peer.hear("refused").refused.code == "too_large"
        assert list((there.root / "coordinator" / "alpha").iterdir()) == []
        peer.say(offer(short, 2))
        peer.hear("received")
        assert asked_of == [1000]


class Deaf(Stream):
    """A peer that makes offers without end and reads nothing, so that there is no room for a write."""

    def __init__(self) -> None:
        self.offers = 0

    async def read(self) -> bytes | None:
        self.offers += 1
        await asyncio.sleep(0)
        return pb.Frame(offer=pb.Offer(number=self.offers, header=b"\xff")).SerializeToString()

    async def write(self, frame: bytes) -> None:
        await asyncio.Event().wait()


def test_a_hospital_that_reads_no_answers_cannot_pile_them_up(there: Federation, tmp_path: Path) -> None:
    deaf, shelf = Deaf(), Shelf(tmp_path / "deaf", Limits())
    there.server.admit = lambda _: Identity(federation="f", role="site", name="alpha")

    async def talk() -> None:
        session = Session(deaf, Hospital("alpha", there.server), shelf, Limits(), Pace(check_s=60.0))
        await asyncio.wait_for(session.run(), PATIENCE_S)

    with pytest.raises(SessionEnded, match="protocol_violated"):
        submit(talk()).result()
    assert deaf.offers < 200
