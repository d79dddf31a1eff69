"""Patterns as clients write them, each with one for Python that matches the same."""

from __future__ import annotations

from hypothesis import strategies as st

PIECES = st.sampled_from(
    [
        ("a", "a"), ("b", "b"), (".", r"[^\n\r]"), (r"\d", "[0-9]"), (r"\w", "[0-9A-Za-z_]"), ("[^b]", "[^b]"),
        ("[a-]", r"[a\-]"), (r"[\]a]", r"[\]a]"), ("[[1]", r"[\[1]"), (r"\.", r"\."), (r"\s", r"[ \n\t]"),
        (r"[^\s]", r"[^ \n\t]"), ("[1-b]", "[1-b]"), (r"[\\d-z]", r"[\\d-z]"), ("[a-b-_]", r"[a-b\-_]"),
    ]
)  # fmt: skip
REPEATS = st.sampled_from(["", "*", "+", "?", "{2}", "{1,2}", "{0,}", "*?"])


def joined(parts: list[tuple[str, str]]) -> tuple[str, str]:
    return "".join(ours for ours, _ in parts), "".join(theirs for _, theirs in parts)


PATTERN = st.recursive(
    st.lists(
        st.tuples(PIECES, REPEATS).map(lambda each: (each[0][0] + each[1], each[0][1] + each[1])), max_size=3
    ).map(joined),
    lambda inner: st.tuples(inner, inner, REPEATS).map(
        lambda each: (f"(?:{each[0][0]}|{each[1][0]}){each[2]}", f"(?:{each[0][1]}|{each[1][1]}){each[2]}")
    ),
    max_leaves=4,
)  # fmt: skip
