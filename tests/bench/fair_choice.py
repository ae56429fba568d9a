"""Candidates for the fair choice, played against each other. It prints the tables of docs/concepts/fairness.md.

    python tests/bench/fair_choice.py

Pure Python and no Redis; it takes about a minute. Users have unlimited tasks unless a scenario says otherwise. A round
is one service of each busy user. To try another rule, write a candidate; to try another attack, a scenario.
"""

import collections
import heapq
import random
from collections.abc import Callable, Iterable

from fairque.fairness.choice import EVERYBODY, FairChoice, Line


class ByMean:
    """The rule of fairque itself: `FairChoice`."""

    make = FairChoice

    def __init__(self) -> None:
        self.choice = self.make()

    def join(self, user: str, weight: float = 1.0, cost: float = 1.0) -> None:
        if self.choice.weight(user) != weight:
            self.choice.set_weight(user, weight)
        self.choice.join(user, cost)

    def leave(self, user: str) -> None:
        self.choice.leave(user)

    def hold(self, user: str) -> None:
        """It is at its cap: it has work that may not run now."""
        self.choice.leave(user, is_capped=True)

    def reweigh(self, user: str, weight: float) -> None:
        self.choice.set_weight(user, weight)

    def pick(self, users: Iterable[str] = ()) -> str:
        """Of these users, or of all."""
        return self.choice.lowest(tuple(users)) or ""

    def serve(self, user: str, cost: float) -> None:
        self.choice.serve(user, cost)

    def charge(self, user: str, cost: float) -> None:
        """A service has cost so much more than was charged at its start."""
        self.choice.adjust(user, cost)

    def workers(self, *lists: Iterable[str]) -> None:
        for users in lists:
            self.choice.note_workers(frozenset(users))

    def gone(self, users: Iterable[str]) -> None:
        """The workers of these users."""
        self.choice.end_workers(frozenset(users))


class OwnLine(Line):
    def _entry(self, share: float, low: float | None) -> float:
        return self.clock if low is None else max(low, min(self.clock, low + share / 2))

    def join(self, member: str, share: float, low: float | None) -> None:
        self.uncap(member)
        super().join(member, share, low)

    def weigh(self, member: str, weight: float) -> None:
        self.weights[member] = weight

    def forgive(self, member: str) -> None:
        pass


class ByOwnTask(ByMean):
    """At most half of the own first task above the lowest; nothing is forgiven, owed or counted anew."""

    def __init__(self) -> None:
        super().__init__()
        self.choice.lines[""] = OwnLine()

    def workers(self, *lists: Iterable[str]) -> None:
        pass


class ZeroLag(ByMean):
    """The clock is the weighted mean of all tags, so the sum of lags is zero. Who left ahead counts until then.

    W and S are the sums of weights, and of weight x tag: a service adds its cost to S, whatever the weight.
    """

    def __init__(self) -> None:
        self.tag: dict[str, float] = {}
        self.left: dict[str, float] = {}
        self.held: dict[str, float] = {}
        self.weight: dict[str, float] = {}
        self.W = self.S = self.base = 0.0
        self.mean = 1.0

    def now(self) -> float:
        return self.S / self.W if self.W > 1e-9 else self.base

    def _into(self, user: str, tag: float, weight: float) -> None:
        self.tag[user], self.weight[user] = tag, weight
        self.W += weight
        self.S += weight * tag

    def _out(self, user: str, tag: float) -> None:
        self.base = max(self.base, self.now())
        self.W -= self.weight[user]
        self.S -= self.weight[user] * tag

    def _entry(self, cost: float) -> float:  # noqa: ARG002
        if not self.tag:
            return self.now()
        low = min(self.tag.values())
        return max(low, min(self.now(), low + self.mean / 2))

    def join(self, user: str, weight: float = 1.0, cost: float = 1.0) -> None:
        if user in self.held:
            self._into(user, max(self.held.pop(user), self.now() - 4 * self.mean), weight)
            return
        tag = self._entry(cost / weight)
        if user in self.left:
            tag = self.left.pop(user)
            self._out(user, tag)
        self._into(user, tag, weight)

    def leave(self, user: str) -> None:
        tag = self.tag.pop(user)
        if tag > self.now():
            self.left[user] = tag
        else:
            self._out(user, tag)

    def hold(self, user: str) -> None:
        self.held[user] = tag = self.tag.pop(user)
        self._out(user, tag)

    def reweigh(self, user: str, weight: float) -> None:
        tag = self.tag.pop(user)
        self._out(user, tag)
        self._into(user, self.now() - (self.now() - tag) * self.weight[user] / weight, weight)

    def pick(self, users: Iterable[str] = ()) -> str:
        return min((user for user in users or self.tag if user in self.tag), key=lambda user: (self.tag[user], user))

    def _start(self, user: str) -> float:
        """A debt is cut at each service."""
        return min(self.tag[user], max(self.now(), min(self.tag.values())) + 8 * self.mean)

    def serve(self, user: str, cost: float) -> None:
        weight, tag = self.weight[user], self.tag[user]
        self.tag[user] = self._start(user) + cost / weight
        self.mean += (cost / weight - self.mean) / 32
        self.S += weight * (self.tag[user] - tag)
        self._settle()

    def _settle(self) -> None:
        while self.left:
            first = min(self.left, key=self.left.__getitem__)
            if self.left[first] > self.now():
                return
            self._out(first, self.left.pop(first))

    def charge(self, user: str, cost: float) -> None:
        self.tag[user] += cost / self.weight[user]
        self.S += cost

    def workers(self, *lists: Iterable[str]) -> None:
        pass

    def gone(self, users: Iterable[str]) -> None:
        pass


class Refined(ZeroLag):
    """Zero lag, with what it lacks: own tags are kept until the lowest has passed them, debts are cut only at the end
    of an assignment, and the entry is bounded by the own task as well.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, float] = {}

    def _entry(self, cost: float) -> float:
        if not self.tag:
            return self.now()
        low = min(self.tag.values())
        return max(low, min(self.now(), low + min(self.mean, cost) / 2))

    def join(self, user: str, weight: float = 1.0, cost: float = 1.0) -> None:
        own = self.kept.pop(user, None)
        super().join(user, weight, cost)
        if own is not None and own > self.tag[user]:
            self.charge(user, (own - self.tag[user]) * weight)

    def leave(self, user: str) -> None:
        tag = self.tag[user]
        super().leave(user)
        if user not in self.left:
            self.kept[user] = tag

    def _start(self, user: str) -> float:
        return self.tag[user]

    def _settle(self) -> None:
        before = dict(self.left)
        super()._settle()
        self.kept |= {user: tag for user, tag in before.items() if user not in self.left}
        low = min(self.tag.values(), default=self.now())
        self.kept = {user: tag for user, tag in self.kept.items() if tag > low}

    def gone(self, users: Iterable[str]) -> None:
        named = set(users)
        low = min((tag for user, tag in self.tag.items() if user not in named), default=0.0)
        for user in named & self.tag.keys():
            self.charge(user, (min(self.tag[user], low + 8 * self.mean) - self.tag[user]) * self.weight[user])


# Where one enters, with assignments: which lowest tag counts


class OfAll(FairChoice):
    """The lowest tag of all, whoever serves it."""

    def note_workers(self, users: frozenset[str]) -> None:
        pass


class OfLowest(FairChoice):
    """The lowest one of those of the assignments that serve the user."""

    def _low(self, line: Line, user_id: str) -> float | None:
        lows = [self._lowest_among(line, users) for users in self._living() if self._serves(users, user_id)]
        return min((low for low in lows if low is not None), default=None)


class EnterOfAll(ByMean):
    make = OfAll


class EnterOfLowest(ByMean):
    make = OfLowest


Make = Callable[[], ByMean]
RULES: dict[str, Make] = {
    "by half of the own task": ByOwnTask,
    "**by half of the mean**": ByMean,
    "zero lag": ZeroLag,
    "refined": Refined,
}
ENTRIES: dict[str, Make] = {"of all": EnterOfAll, "the lowest": EnterOfLowest, "**the highest**": ByMean}


def busy(make: Make, users: int = 10, weight: float = 1.0, services: int = 200) -> ByMean:
    fair = make()
    for at in range(users):
        fair.join(f"busy-{at}", weight)
    for _ in range(services):
        fair.serve(fair.pick(), 1)
    return fair


def place_of(fair: ByMean, user: str, cost: float = 1.0, most: int = 50_000, users: Iterable[str] = ()) -> int:
    """Which service is its first."""
    for place in range(1, most + 1):
        found = fair.pick(users)
        fair.serve(found, cost if found == user else 1)
        if found == user:
            return place
    return most + 1


# One line


def bound(make: Make) -> str:
    """The largest |Si/wi - Sj/wj| over any window, as a part of ci/wi + cj/wj, among users that never run dry."""
    worst, users = 0.0, [f"u{at}" for at in range(8)]
    for seed in range(4):
        draw, fair, had, history = random.Random(seed), make(), dict.fromkeys(users, 0.0), []
        weights = {user: draw.choice([0.5, 1.0, 2.0, 5.0]) for user in users}
        largest = {user: draw.choice([0.1, 1.0, 3.0, 50.0]) for user in users}
        for user in users:
            fair.join(user, weights[user], largest[user])
        for _ in range(2000):
            user = fair.pick()
            cost = largest[user] * draw.uniform(0.2, 1)
            fair.serve(user, cost)
            had[user] += cost
            history.append(dict(had))
        for _ in range(300):
            first, last = sorted(draw.sample(range(2000), 2))
            share = {user: (history[last][user] - history[first][user]) / weights[user] for user in users}
            for at, one in enumerate(users):
                for other in users[:at]:
                    allowed = largest[one] / weights[one] + largest[other] / weights[other]
                    worst = max(worst, abs(share[one] - share[other]) / allowed)
    return f"{worst:.2f}"


def newcomer(make: Make, cost: float, weight: float = 1.0) -> int:
    """The worst place, of twelve newcomers in turn with one task, among ten busy users of this weight."""
    fair, worst = busy(make, weight=weight), 0
    for number in range(12):
        fair.join(f"new-{number}", 1, cost)
        worst = max(worst, place_of(fair, f"new-{number}", cost))
        fair.leave(f"new-{number}")
        for _ in range(17):
            fair.serve(fair.pick(), 1)
    return worst


def newcomers(make: Make) -> str:
    return ", ".join(f"{newcomer(make, cost):,}" for cost in (1, 10, 100, 1000))


def newcomer_beside_heavy(make: Make) -> str:
    return str(newcomer(make, 1, 10))


def closed_loop(make: Make) -> str:
    """The share of one who comes back at once after each service, beside one with a backlog."""
    fair, had = make(), collections.Counter[str]()
    fair.join("backlog")
    fair.join("loop")
    for _ in range(3000):
        user = fair.pick()
        fair.serve(user, 1)
        had[user] += 1
        if user == "loop":
            fair.leave("loop")
            fair.join("loop")
    return f"{had['loop'] / 30:.0f} %"


def flood(make: Make) -> str:
    """Services of an old user out of 2,000 while a new id comes at each. An ideal fluid system gives it about 63."""
    fair, old = make(), 0
    fair.join("old")
    for number in range(2000):
        fair.join(f"new-{number:05}")
        user = fair.pick()
        fair.serve(user, 1)
        if user == "old":
            old += 1
        else:
            fair.leave(user)
    return str(old)


def capped_share(make: Make, slots: int, cap: int) -> float:
    draw, fair, now = random.Random(1), make(), 0.0
    running: list[tuple[float, int, str]] = []
    had, at_work, order = collections.Counter[str](), collections.Counter[str](), 0
    fair.join("capped")
    fair.join("free")
    while now < 3000:
        while len(running) < slots:
            user = fair.pick()
            fair.serve(user, 1)
            order += 1
            heapq.heappush(running, (now + draw.expovariate(1), order, user))
            at_work[user] += 1
            if user == "capped" and at_work[user] >= cap:
                fair.hold(user)
        now, _, user = heapq.heappop(running)
        had[user] += 1
        at_work[user] -= 1
        if user == "capped" and at_work[user] == cap - 1:
            fair.join(user)
    return had["capped"] / had.total()


def capped(make: Make) -> str:
    return ", ".join(f"{100 * capped_share(make, slots, cap):.0f} %" for slots, cap in ((2, 1), (10, 5)))


def raised(make: Make) -> str:
    """Services until the next one of a user whose weight was raised from 0.01 to 100, among ten of weight 1."""
    fair = busy(make)
    fair.join("light", 0.01)
    place_of(fair, "light")
    fair.reweigh("light", 100)
    return f"{place_of(fair, 'light'):,}"


def after_costly(make: Make) -> str:
    """The place of a newcomer after another one's task of cost 10,000, among ten busy ones."""
    fair = busy(make)
    fair.join("costly", 1, 10_000)
    place_of(fair, "costly", 10_000)
    fair.leave("costly")
    fair.join("new")
    return f"{place_of(fair, 'new'):,}"


def late_charges(make: Make) -> str:
    """Two users, 10 slots, a task costs 10 and is charged 1 at its start: by how many tasks one gets ahead."""
    draw, fair, now = random.Random(2), make(), 0.0
    running: list[tuple[float, int, str]] = []
    had, worst = collections.Counter[str](), 0
    fair.join("a")
    fair.join("b")
    for order in range(4000):
        if len(running) == 10:
            now, _, ended = heapq.heappop(running)
            fair.charge(ended, 9)
        user = fair.pick()
        fair.serve(user, 1)
        had[user] += 1
        heapq.heappush(running, (now + draw.expovariate(1 if user == "a" else 0.2), order, user))
        worst = max(worst, abs(had["a"] - had["b"]))
    return str(worst)


# Workers of some users


def debt(make: Make) -> str:
    """Services until the next one of a user whose own worker, of 1,000 services, has gone. 11 users."""
    fair = busy(make, services=0)
    fair.join("own")
    fair.workers(EVERYBODY, ["own"])
    for _ in range(1000):
        fair.serve("own", 1)
    fair.gone(["own"])
    return f"{place_of(fair, 'own'):,}"


def beside_orphan(make: Make) -> str:
    """The last 300 services of two equal users beside one that no worker serves."""
    fair, last = make(), collections.Counter[str]()
    fair.workers("ab")
    for user in ("a", "b", "orphan"):
        fair.join(user)
    for number in range(3300):
        user = fair.pick("ab")
        fair.serve(user, 1)
        last[user] += number >= 3000
    return f"{last['a']} : {last['b']}"


def new_beside_orphan(make: Make) -> str:
    """Services in a row of a newcomer beside an established user, because a third one is ready that nobody serves."""
    fair, run = make(), 0
    fair.workers(["established", "new"])
    fair.join("orphan")
    fair.join("established")
    for _ in range(3000):
        fair.serve("established", 1)
    fair.join("new")
    while run < 5000 and fair.pick(["established", "new"]) == "new":
        fair.serve("new", 1)
        run += 1
    return f"{run:,}"


def overlapping(make: Make) -> str:
    """Services of a, b and c, whom three workers serve in pairs."""
    fair, had = make(), collections.Counter[str]()
    pairs = ("ab", "bc", "ca")
    fair.workers(*pairs)
    for user in "abc":
        fair.join(user)
    for number in range(3000):
        user = fair.pick(pairs[number % 3])
        fair.serve(user, 1)
        had[user] += 1
    return " : ".join(f"{had[user]:,}" for user in "abc")


def between_pools(make: Make) -> tuple[ByMean, list[str], list[str]]:
    """Two pools, one ten times as fast, have served each two users of its own for long. One may be served by both."""
    fair = make()
    fast, slow = ["fast-1", "fast-2", "both"], ["slow-1", "slow-2", "both"]
    fair.workers(fast, slow)
    for user in fast[:2] + slow[:2]:
        fair.join(user)
    for number in range(6000):
        fair.serve(fair.pick(slow if number % 11 == 0 else fast), 1)
    return fair, fast, slow


def newcomer_of_both(make: Make) -> str:
    """Of the fast pool's next 300 services, how many go to one that comes and is served by both pools; 100 are fair."""
    fair, fast, slow = between_pools(make)
    fair.join("both")
    got = 0
    for number in range(330):
        user = fair.pick(slow if number % 11 == 0 else fast)
        fair.serve(user, 1)
        got += user == "both" and number % 11 != 0
    return str(got)


def flood_in_one_pool(make: Make) -> str:
    """The same flood of ids in the slow pool: services of its two established users, out of 1,000."""
    fair, fast, slow = between_pools(make)
    flood = [f"id-{number:04}" for number in range(1000)]
    fair.workers([*slow, *flood])
    fair.gone(slow)
    old = 0
    for new in flood:
        fair.join(new)
        for _ in range(10):
            fair.serve(fair.pick(fast), 1)
        user = fair.pick([*slow, *flood])
        fair.serve(user, 1)
        if user.startswith("id"):
            fair.leave(user)
        else:
            old += 1
    return str(old)


def orphans_return(make: Make) -> str:
    """Services in a row of ten users whom nobody served for 1,000, when they get a worker beside ten others."""
    fair = make()
    served, orphans = [f"a-{at}" for at in range(10)], [f"o-{at}" for at in range(10)]
    fair.workers(served)
    for user in served + orphans:
        fair.join(user)
    for _ in range(1000):
        fair.serve(fair.pick(served), 1)
    fair.workers(served + orphans)
    run = 0
    while run < 20_000 and (user := fair.pick(served + orphans)) in orphans:
        fair.serve(user, 1)
        run += 1
    return f"{run:,}"


# Groups


def sybils(make: Make) -> str:
    """Out of 300 services, what one of three gets that comes as 20 users of a group."""
    fair = make()
    for at in range(20):
        fair.choice.set_group(f"sybil-{at}", "many/team")
    for user in (*(f"sybil-{at}" for at in range(20)), "honest", "alone"):
        fair.join(user)
    had = collections.Counter[str]()
    for _ in range(300):
        user = fair.pick()
        fair.serve(user, 1)
        had[user.partition("-")[0]] += 1
    return str(had["sybil"])


def newcomer_in_a_group(make: Make, depth: int) -> str:
    """The worst place of a newcomer in a group this deep, beside four busy users in each of its ten lines."""
    fair, worst = make(), 0
    path = "/".join("abcd"[:depth])
    for level in range(depth + 1):
        for at in range(4):
            fair.choice.set_group(f"{level}-{at}", path[: max(0, 2 * level - 1)] or None)
            fair.join(f"{level}-{at}")
    for number in range(40):
        fair.choice.set_group(f"new-{number}", path or None)
        fair.join(f"new-{number}")
        worst = max(worst, place_of(fair, f"new-{number}"))
        fair.leave(f"new-{number}")
        for _ in range(37):
            fair.serve(fair.pick(), 1)
    return str(worst)


OF_RULES: dict[str, Callable[[Make], str]] = {
    "largest deviation, as a part of the bound": bound,
    "place of a newcomer of cost 1, 10, 100, 1,000 among ten of cost 1": newcomers,
    "the same, of cost 1, beside ten of weight 10": newcomer_beside_heavy,
    "a closed loop's share beside a backlog": closed_loop,
    "an old user's part of 2,000 services, with a new id at each (63 is ideal)": flood,
    "share of one capped at 1 of 2, 5 of 10 slots, beside an equal one": capped,
    "services until the next of one whose own worker, after 1,000, has gone": debt,
    "services until the next after a weight was raised from 0.01 to 100": raised,
    "place of a newcomer after another one's task of cost 10,000": after_costly,
    "tasks that one is ahead, of two with ten slots, nine tenths charged at the end": late_charges,
    "services of two beside one that no worker serves": beside_orphan,
    "three users that three workers serve in pairs": overlapping,
}
OF_ENTRIES: dict[str, Callable[[Make], str]] = {
    "services of two beside one that no worker serves": beside_orphan,
    "a newcomer's services in a row, where a third one is served by nobody": new_beside_orphan,
    "of 300 services of a fast pool, a newcomer's that a slow one serves as well (100 is fair)": newcomer_of_both,
    "two old users' part of 1,000 services of a slow pool, with a new id at each (63 is ideal)": flood_in_one_pool,
    "services in a row of ten who had no worker for 1,000, when they get one": orphans_return,
    "three users that three workers serve in pairs": overlapping,
}


def table(candidates: dict[str, Make], scenarios: dict[str, Callable[[Make], str]]) -> None:
    print("| |", " | ".join(candidates), "|")
    print("|---|" + "---|" * len(candidates))
    for name, scenario in scenarios.items():
        print(f"| {name} |", " | ".join(scenario(make) for make in candidates.values()), "|", flush=True)


if __name__ == "__main__":
    table(RULES, OF_RULES)
    print()
    table(ENTRIES, OF_ENTRIES)
    print(f"\nOf 300 services, a tenant of three that comes as 20 users of one group gets {sybils(ByMean)}.")
    depths = ", ".join(newcomer_in_a_group(ByMean, depth) for depth in range(5))
    print(f"Place of a newcomer 0 to 4 groups deep, beside four busy users in each line: {depths}.")
