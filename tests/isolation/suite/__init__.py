"""The tenant-isolation suite: one attacker with every means the API offers, one quiet user, on real workers.

    python -m tests.isolation.suite [--small] [--only ATTACK]... [--workers N] [--write FILE]

The attacker, the workers and the quiet user are processes of their own, and share a server. For each attack, the quiet
user enqueues single tasks, small batches and delayed tasks, first alone, then while the attack runs. Counted are the
services that others got between its enqueue and its start, in the order of the server's claims, and the time on the
clock. Both must stay within a documented number; nothing of the quiet user may be lost, and its results must be right.

What an attack may cost in services follows from the rule of the fair choice, see `bounds.py`: no number is fitted.
"""
