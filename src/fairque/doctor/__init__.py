"""Looks whether a queue contradicts itself, and mends it."""
