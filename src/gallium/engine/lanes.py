"""Which lane a new sequence goes to: each has a cache of its own, and all run their steps together."""

from __future__ import annotations

from collections.abc import Sequence

from gallium.engine.request import Job
from gallium.engine.scheduler import Scheduler

SLACK = 4  # sequences that a lane may have more than the least busy one, if it knows the beginning of the prompt


def choose_lane(lanes: Sequence[Scheduler[Job]], job: Job) -> int:
    """The least busy lane, or one that is hardly busier and saves the computation of a known prefix.

    The sequences of a step are computed together, so a few more cost little; a prefix costs its whole length.
    """
    if len(lanes) == 1:
        return 0
    load = [lane.num_open for lane in lanes]
    least = min(load)
    known = [lane.known_prefix(job) if load[i] <= least + SLACK else 0 for i, lane in enumerate(lanes)]
    return min(range(len(lanes)), key=lambda i: (-known[i], load[i]))
