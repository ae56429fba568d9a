-- What Redis offers to scripts, beside Lua 5.1.
std = "lua51"
read_globals = {"redis", "KEYS", "ARGV", "cjson", "cmsgpack", "struct", "bit"}
max_line_length = false
-- A script gets more of an include, and of its arguments, than it uses.
unused = false
