"""Everything that can be set, from files, dicts and environment variables, checked before it is used."""
