"""Which KV blocks are free, in use, or still hold a prefix worth keeping; numbers only, no memory.

Every block is in exactly one of three places: *used* (at least one reference), *idle* (unreferenced, but its
content is known and may be shared again; evicted least recently used first) or *free*.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from hashlib import blake2b


def block_digest(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Name of a full block's content: BLAKE2b-256 over the parent block's name and this block's token ids.

    Equal names therefore mean equal whole prefixes; with 256 bits nobody finds a collision, even on purpose.
    """
    return blake2b(parent + array("q", token_ids).tobytes(), digest_size=32).digest()


class BlockManager:
    """Reference counts, free list and prefix cache of `num_blocks` blocks of `block_size` tokens."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.reset()

    def reset(self) -> None:
        """Every block is free, and no content is known."""
        num_blocks = self.num_blocks
        self._refs = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))  # taken from the end: what was in use is used again first
        self._idle: dict[int, None] = {}  # insertion order = least recently used first
        self._block_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        """Blocks that nobody uses, idle ones included: what `allocate` can hand out."""
        return len(self._free) + len(self._idle)

    @property
    def num_idle(self) -> int:
        """Blocks that nobody uses and that still hold a reusable prefix."""
        return len(self._idle)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def lookup(self, digests: Iterable[bytes]) -> list[int]:
        """The blocks of the longest known prefix of `digests`. Changes nothing."""
        found = []
        for digest in digests:
            block = self._block_of.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def free_without(self, blocks: Iterable[int]) -> int:
        """How many blocks could still be allocated after `share(blocks)`."""
        return self.num_free - sum(1 for block in blocks if self._refs[block] == 0)

    def share(self, blocks: Iterable[int]) -> None:
        """Add one reference to each block; idle ones become used."""
        for block in blocks:
            if self._refs[block] == 0:
                del self._idle[block]  # a KeyError here would mean sharing a free block: a bug of the caller
            self._refs[block] += 1

    def allocate(self, count: int) -> list[int] | None:
        """`count` blocks with one reference each, idle ones last; None (and no change) if there are fewer."""
        if count > self.num_free:
            return None
        taken = []
        for _ in range(count):
            if self._free:
                block = self._free.pop()
            else:
                block = next(iter(self._idle))
                del self._idle[block]
                del self._block_of[self._digest_of.pop(block)]
            self._refs[block] = 1
            taken.append(block)
        return taken

    def release(self, blocks: Sequence[int]) -> None:
        """Drop one reference of each block of one table, in the table's order.

        The tail becomes the older one, so that eviction never keeps a block whose prefix is gone.
        """
        for block in reversed(blocks):
            self._refs[block] -= 1
            if self._refs[block] == 0:
                if block in self._digest_of:
                    self._idle[block] = None
                else:
                    self._free.append(block)

    def register(self, block: int, digest: bytes) -> None:
        """Make a used, completely computed block findable; the first block with a content keeps the name."""
        if digest not in self._block_of and block not in self._digest_of:
            self._block_of[digest] = block
            self._digest_of[block] = digest

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """Assert, given the block tables of all users, that nothing is leaked or shared by mistake."""
        users = Counter(block for table in tables for block in table)
        assert all(self._refs[block] == users[block] for block in range(self.num_blocks)), (
            "references differ from users"
        )
        free, idle = set(self._free), set(self._idle)
        used = {block for block in range(self.num_blocks) if self._refs[block]}
        assert len(free) == len(self._free), "a block is free twice"
        assert not free & idle and not free & used and not idle & used, "a block is in two places"
        assert len(free) + len(idle) + len(used) == self.num_blocks, "a block is lost"
        assert {d: b for b, d in self._digest_of.items()} == self._block_of, "names and blocks do not match"
        assert idle <= set(self._digest_of) <= idle | used, "a free block has a name"
