"""Hypothesis strategies for items."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from items import REFUSED, REFUSED_HASHABLE

BIG = 1 << 31  # the first int that has no opcode with four bytes

plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-BIG - 2, -BIG + 2),
    st.integers(BIG - 2, BIG + 2),
    st.floats(),
    st.complex_numbers(),
    st.binary(),
    st.text(st.characters(codec=None)),  # lone surrogates too
)


def _hashable_containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.lists(inner, max_size=4).map(tuple), st.frozensets(inner, max_size=4))


keys = st.recursive(plain, _hashable_containers, max_leaves=4)


def items(
    leaves: st.SearchStrategy[Any] = plain, hashable: st.SearchStrategy[Any] = keys
) -> st.SearchStrategy[Any]:
    """Return a strategy for items with these leaves; ``hashable`` makes keys and elements."""

    def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.one_of(
            st.lists(inner, max_size=5),
            st.lists(inner, max_size=5).map(tuple),
            st.dictionaries(hashable, inner, max_size=4),
            st.sets(hashable, max_size=4),
            st.frozensets(hashable, max_size=4),
        )

    return st.recursive(st.one_of(leaves, hashable), containers, max_leaves=12)


def questionable_items() -> st.SearchStrategy[Any]:
    """Return a strategy for items of which many have a part that is refused."""
    bad_keys = st.sampled_from(list(REFUSED_HASHABLE.values()))
    bad = st.sampled_from(list(REFUSED.values()))
    return items(plain | bad, plain | bad_keys)
