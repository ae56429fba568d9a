"""A Valkey server that fairque runs itself, so that a queue needs nothing installed beside it."""
