"""The two ways to serve one load that ``fairque demo`` compares, at the same time."""
