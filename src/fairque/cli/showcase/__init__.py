"""What ``fairque demo`` shows: one load, served fairly and first come, first served, at the same time."""
