"""The block manager: sharing, eviction order, atomic allocation, content names."""

from __future__ import annotations

import pytest

from gallium.engine.blocks import BlockManager, block_digest


def chain(*blocks: list[int]) -> list[bytes]:
    digests, parent = [], b""
    for tokens in blocks:
        parent = block_digest(parent, tokens)
        digests.append(parent)
    return digests


def test_names_cover_the_whole_prefix() -> None:
    a = chain([1, 2], [3, 4])
    assert a == chain([1, 2], [3, 4])
    assert a[1] != chain([9, 2], [3, 4])[1]  # same block, other prefix
    assert a[1] != block_digest(b"", [3, 4])
    assert chain([1, 23])[0] != chain([12, 3])[0]
    assert block_digest(b"", [2**40]) != block_digest(b"", [0])  # ids are not cut to 32 bits


def test_allocate_is_all_or_nothing() -> None:
    blocks = BlockManager(3, 4)
    assert blocks.allocate(4) is None
    taken = blocks.allocate(2)
    assert taken is not None and len(set(taken)) == 2
    assert blocks.allocate(2) is None and blocks.num_free == 1
    blocks.check([taken])
    blocks.release(taken)
    assert blocks.num_free == 3 and blocks.num_idle == 0
    blocks.check([])
    assert blocks.allocate(0) == []


def test_a_named_block_is_found_shared_and_outlives_its_user() -> None:
    blocks = BlockManager(4, 2)
    names = chain([1, 2], [3, 4])
    first = blocks.allocate(2)
    assert first is not None
    for block, name in zip(first, names, strict=True):
        blocks.register(block, name)
    assert blocks.lookup(names) == first
    blocks.share(first)
    blocks.check([first, first])
    blocks.release(first)
    blocks.release(first)
    assert blocks.num_free == 4 and blocks.num_idle == 2
    assert blocks.lookup(names) == first and blocks.free_without(first) == 2
    blocks.share(blocks.lookup(names))
    assert blocks.num_idle == 0
    blocks.check([first])


def test_unnamed_blocks_go_first_then_the_least_recently_used_tail_before_head() -> None:
    blocks = BlockManager(5, 1)
    old, new = blocks.allocate(2), blocks.allocate(2)
    assert old is not None and new is not None
    old_names, new_names = chain([1], [2]), chain([3], [4])
    for block, name in zip(old + new, old_names + new_names, strict=True):
        blocks.register(block, name)
    blocks.release(old)
    blocks.release(new)
    assert blocks.allocate(1) == [4]  # the one that was never used
    assert blocks.allocate(1) == [old[1]] and blocks.lookup(old_names) == [old[0]]
    assert blocks.allocate(1) == [old[0]] and blocks.lookup(old_names) == []
    assert blocks.lookup(new_names) == new
    assert blocks.allocate(2) == [new[1], new[0]]
    assert blocks.allocate(1) is None


def test_the_first_block_with_a_content_keeps_the_name() -> None:
    blocks = BlockManager(2, 1)
    both = blocks.allocate(2)
    assert both is not None
    (name,) = chain([7])
    blocks.register(both[0], name)
    blocks.register(both[1], name)
    assert blocks.lookup([name]) == [both[0]]
    blocks.release(both)
    assert blocks.num_idle == 1 and blocks.num_free == 2
    blocks.check([])


def test_a_prefix_ends_at_the_first_unknown_block() -> None:
    blocks = BlockManager(3, 1)
    names = chain([1], [2], [3])
    taken = blocks.allocate(2)
    assert taken is not None
    blocks.register(taken[0], names[0])
    blocks.register(taken[1], names[2])
    assert blocks.lookup(names) == [taken[0]]


@pytest.mark.parametrize(("tokens", "expected"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2)])
def test_blocks_for(tokens: int, expected: int) -> None:
    assert BlockManager(1, 4).blocks_for(tokens) == expected


def test_check_notices_a_leak_and_a_wrong_share() -> None:
    blocks = BlockManager(2, 1)
    taken = blocks.allocate(1)
    assert taken is not None
    with pytest.raises(AssertionError, match="references differ"):
        blocks.check([])
    with pytest.raises(AssertionError, match="references differ"):
        blocks.check([taken, taken])
