"""How many services of others a task may wait for, from the rule in docs/concepts/fairness.md.

A user stands at most one of its own services above the lowest tag: its k-th task from now on is served at k c/w above
the lowest at the most, with c its cost and w its weight. A rival starts at the lowest tag or above, moves by its cost /
weight with each service, and is served for as long as it is not above the other. So all but the last of its services
fit into k c/w:

    services of a rival <= 1 + k (c/w) / (least cost / weight of the rival)

and all rivals together get as many times that. Where each comes once, and a new one takes its place, that one enters at
half a service above the lowest: so they move by half as much with each service. Nothing else is in it: not the
backlogs, not what is due, held, read or canceled meanwhile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

CREDIT = 4
"""Mean services that a user may be owed which was held at its cap."""


@dataclass(frozen=True)
class Rivals:
    """Who stands beside the quiet user, whose weight and costs are 1.

    Args:
        users: Most that are ready at once; a group is one.
        weight: The largest that one of them has.
        cost: The smallest of a task of theirs, but not above 1.
        credit: Services that each is owed on top, because it was held at a cap.
        fresh: Each is served once; there is a new one in its place then.
        places: Tasks of a limited name that were let in before: as many as may run.
        dead: Workers die, one of two at a time. Up to a half of each claim is what they held, and each of the two may
            have one more that was in a process that died.
    """

    users: int = 1
    weight: float = 1.0
    cost: float = 1.0
    credit: int = 0
    fresh: bool = False
    places: int = 0
    dead: bool = False

    def services(self, kth: int = 1) -> int:
        """Most that all of them get between the enqueue and the start of the quiet user's k-th task."""
        step = min(1.0, self.cost) / self.weight / (2 if self.fresh else 1)
        each = 1 + math.floor(kth / step + 1e-9) + self.credit
        fair = self.users * each + self.places
        return 2 * fair + 1 + 2 if self.dead else fair


ONE_RIVAL = Rivals()
