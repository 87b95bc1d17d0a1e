"""The counts of a roster, which are kept and not made anew, are what counting would find."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from hypothesis import given, settings
from hypothesis import strategies as st

from actors.counts import Counts
from actors.ring import Ring
from actors.roster import AT_RISK_LAG, Known, Roster, Subscriber, Watcher
from actors.transport import Transport
from storage.records import Cursor, Epoch, Seq, SubscriberId, Window

PEOPLE = [SubscriberId(f"user-{number}", None) for number in range(2)]
EPOCHS = (Epoch("first"), Epoch("second"))

steps = st.one_of(
    st.tuples(st.just("publish"), st.sampled_from([1, 40, 81])),
    st.tuples(st.just("restart"), st.integers(0, 1)),
    st.tuples(st.sampled_from(["meet", "forget"]), st.integers(0, 1)),
    st.tuples(st.sampled_from(["attach", "detach"]), st.integers(0, 1)),
    st.tuples(st.just("acknowledge"), st.integers(0, 1)),
)


@dataclass
class Mute:
    """Carries nothing."""

    def end(self, ending: object) -> None:
        """Nobody hears it."""


def new_ring(epoch: Epoch, head: Seq) -> Ring:
    return Ring(Window(epoch, head, head, Seq(0)))


def counted(roster: Roster) -> tuple[int, int, int]:
    assert roster.ring is not None
    assert roster.known is not None
    head, everybody = roster.ring.head, roster.known.values()
    lags = [head - (one.seq if one.epoch == roster.ring.epoch else 0) for one in everybody]
    return sum(bool(one.connections) for one in everybody), len(everybody), sum(lag > AT_RISK_LAG for lag in lags)


@settings(max_examples=400)
@given(st.lists(steps, max_size=60), st.data())
def test_the_counts_are_what_counting_finds(taken: list[tuple[str, int]], data: st.DataObject) -> None:
    roster = Roster("d", Watcher(), Counts())
    roster.begin(new_ring(EPOCHS[0], Seq(0)), {})
    for who in PEOPLE:
        roster.learn(Known("d", Cursor(who, EPOCHS[0], Seq(0), seen_at=0.0, acknowledged_at=None)))
    for step, number in taken:
        assert roster.ring is not None
        assert roster.known is not None
        ring, known = roster.ring, roster.known.get(PEOPLE[number % 2])
        match step:
            case "publish":
                for _ in range(number):
                    ring.append(Seq(ring.head + 1), b"")
            case "restart":
                roster.begin(new_ring(EPOCHS[number], ring.head), roster.known)
            case "meet":
                at = Seq(data.draw(st.integers(0, ring.head)))
                epoch = data.draw(st.sampled_from(EPOCHS))
                roster.learn(Known("d", Cursor(PEOPLE[number], epoch, at, seen_at=0.0, acknowledged_at=None)))
            case "forget" if known is not None and not known.connections:
                assert roster.forget(known.id) is known
            case "attach" if known is not None:
                subscriber = Subscriber(known.id, None, cast("Transport", Mute()))
                roster.attach(subscriber, known, ring.head)
            case "detach" if known is not None and known.connections:
                roster.detach(known.connections[0])
            case "acknowledge" if known is not None:
                lowest = known.seq_in(ring.epoch)
                roster.advance(known, ring.epoch, Seq(data.draw(st.integers(lowest, max(lowest, ring.head)))))
            case _:
                pass
        assert roster.counts() == counted(roster)
