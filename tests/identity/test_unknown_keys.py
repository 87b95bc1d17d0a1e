"""Unknown keys: over any history of tokens and fetches, a key counts as absent exactly when its source has said so."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from web.identity.unknown_keys import UNKNOWN_KEYS_MAX, KeyName, UnknownKeys

KEYS: list[KeyName] = [("RS256", "a"), ("ES256", "a"), ("EdDSA", None)]
STEPS = (
    st.tuples(st.just("named"), st.sampled_from(KEYS))
    | st.tuples(st.just("fetched"), st.sets(st.sampled_from(KEYS)))
    | st.tuples(st.just("failed"), st.none())
    | st.tuples(st.just("named while fetching"), st.sampled_from(KEYS))
)


@given(st.lists(STEPS, max_size=30))
def test_a_key_is_absent_once_a_fetch_that_began_after_it_was_named_has_not_brought_it(
    history: list[tuple[str, object]],
) -> None:
    unknown = UnknownKeys()
    waiting: set[object] = set()
    """Named, and no fetch has begun and succeeded since."""
    absent: set[object] = set()
    for step, about in history:
        match step, about:
            case "named", tuple(key):
                unknown.name(key)
                waiting |= {key} - absent
            case "fetched", set(found):
                unknown.fetch_succeeded(unknown.fetch_begins(), found)
                absent = (absent | waiting) - found
                waiting = set()
            case "failed", _:
                unknown.fetch_begins()
            case "named while fetching", tuple(key):
                number = unknown.fetch_begins()
                already = set(waiting)
                unknown.name(key)
                unknown.fetch_succeeded(number, ())
                absent |= already
                waiting = set[object]({key}) - absent
        assert {key for key in KEYS if unknown.is_absent(key)} == absent


def test_the_names_that_are_remembered_are_the_last_thousand() -> None:
    unknown = UnknownKeys()
    names: list[KeyName] = [("RS256", str(number)) for number in range(UNKNOWN_KEYS_MAX + 1)]
    for name in [*names[:-1], names[0], names[-1]]:
        unknown.name(name)
    unknown.fetch_succeeded(unknown.fetch_begins(), ())
    assert [name for name in names if not unknown.is_absent(name)] == [names[1]]
