-- What Redis offers to scripts, beside Lua 5.1.
std = "lua51"
read_globals = {"redis", "KEYS", "ARGV", "cjson", "cmsgpack", "struct", "bit"}
max_line_length = false
-- A script gets more of an include than it uses.
unused = false
-- What includes read of the scripts that include them, and a local that hides another.
ignore = {"113/has_limited", "431/place"}
