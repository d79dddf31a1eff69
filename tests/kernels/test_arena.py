"""Memory that values share: pieces in use never meet, and a second run takes the same places as the first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kernels.cpu.arena import Arena
from kernels.cpu.memory import ALIGNMENT, address


def run(arena, steps):
    """Take and give back as ``steps`` say (a size, or which of those in use goes back); check at each step."""
    in_use, places = [], []
    for size, chosen in steps:
        if chosen is not None and in_use:
            arena.give(in_use.pop(chosen % len(in_use)))
            continue
        taken = arena.take(size)
        first = address(taken)
        assert first % ALIGNMENT == 0
        assert len(taken) == size
        for other in in_use:
            assert first + size <= address(other) or address(other) + len(other) <= first
        in_use.append(taken)
        places.append(first)
    return places


@given(st.lists(st.tuples(st.integers(1, 5000), st.none() | st.integers(0, 9)), min_size=1, max_size=60))
def test_pieces_in_use_never_meet(steps):
    measured = Arena()
    run(measured, steps)
    placed = Arena(measured.num_bytes)
    run(placed, steps)
    assert placed.num_bytes == measured.num_bytes


def test_the_room_between_is_used():
    arena = Arena(1024)
    first, second, third = (arena.take(256) for _ in range(3))
    arena.give(first)
    arena.give(second)
    assert address(arena.take(512)) == address(first)
    arena.give(third)
    assert arena.num_bytes == 768
