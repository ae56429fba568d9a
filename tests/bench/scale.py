"""How well do workers share between partitions? A million users, 100 partitions, 1,000 workers, in virtual time.

    python tests/bench/scale.py [--users N] [--partitions N] [--workers N] [--seconds N] [SCENARIO ...]

No Redis: `fleet.py` plays the very code that chooses (`PartitionChoice`) and the model of what the scripts do for it
(`Partition`). It produced the tables in docs/concepts/scale.md. The scenario `large` takes minutes, the others seconds.
"""

import argparse
import random
import time
from dataclasses import replace

from fleet import Fleet, Plan

from fairque.fairness.partition_choice import Chosen, PartitionChoice
from fairque.fairness.report import percentile

SMALL = Plan(users=20_000, workers=20, seconds=40.0)
SCENARIOS = {
    "few-busy": replace(SMALL, busy=10, partitions=100),
    "half-idle": replace(SMALL, busy=30, partitions=64),
    "weights": replace(SMALL, busy=60, partitions=16, weights=(1, 2, 5), seconds=60.0),
    "crowded": replace(SMALL, busy=200, partitions=100, workers=100, weights=(1, 2, 5), crowded=0.5, seconds=60.0),
    "heavy": replace(SMALL, busy=16, partitions=32, weights=(1, 1, 1, 0.01), visitors=0.0, seconds=60.0),
    "away": replace(SMALL, busy=150, partitions=48, workers=100, seconds=60.0, away=(20.0, 30.0)),
    "large": Plan(seconds=30.0, warm_up=5.0, away=(10.0, 14.0)),
}


class TwoOfAll(PartitionChoice):
    """The lower head of two partitions drawn from all: what needs no memory."""

    def to_look(self, now: float) -> list[int]:  # noqa: ARG002
        self._asked = dict.fromkeys(self._random.sample(self._turns, 2))
        return list(self._asked)

    def choose(self, now: float, want: int = 1, is_busy: object = None) -> Chosen | None:  # noqa: ARG002
        known = sorted((self._heads[at], at) for at in self._asked if self.knows_work(at))
        if not known:
            return None
        until = known[1][0] if len(known) > 1 else None
        self._time = max(self._time, known[0][0])
        return Chosen(known[0][1], until, self._time, -1e9)


def main() -> None:
    args = _arguments()
    print("| scenario | choice | share error | least | most | wait p50 | wait p99 | beside heavy p99 | claims, looks |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in args.scenarios:
        plan = _changed(SCENARIOS[name], args)
        if name != "large":
            _show(name, "lower of two of all", replace(plan, policy=TwoOfAll))
        _show(name, "PartitionChoice", plan)
        if name not in ("large", "away"):
            _show(name, "one queue, no delay", replace(plan, partitions=1, round_trip=0.0))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", default=list(SCENARIOS), help=", ".join(SCENARIOS))
    for name in ("users", "partitions", "workers", "busy", "seed"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--seconds", type=float, help="of virtual time")
    return parser.parse_args()


def _changed(plan: Plan, args: argparse.Namespace) -> Plan:
    said = {name: value for name, value in vars(args).items() if name != "scenarios" and value is not None}
    return replace(plan, **said)


def _show(scenario: str, choice: str, plan: Plan) -> None:
    began = time.process_time()
    fleet = Fleet(plan).run()
    shares, tally = fleet.shares(), fleet.tally
    waits, beside = (sorted(some) or [0.0] for some in (tally.waits, tally.beside))
    figures = [
        f"{fleet.share_error():.1%}",
        f"{min(shares):.2f}",
        f"{max(shares):.2f}",
        *(f"{percentile(waits, part) * 1000:,.0f} ms" for part in (0.5, 0.99)),
        f"{percentile(beside, 0.99) * 1000:,.0f} ms" if tally.beside else "",
        f"{tally.claims / tally.tasks:.2f}, {tally.looks / tally.tasks:.1f}",
    ]
    print(f"| {scenario} | {choice} | {' | '.join(figures)} |  {time.process_time() - began:.0f} s", flush=True)


if __name__ == "__main__":
    random.seed(1)
    main()
