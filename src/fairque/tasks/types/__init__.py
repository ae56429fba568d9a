"""Annotations: what may be one, how values travel, and what they are made into where they arrive."""
