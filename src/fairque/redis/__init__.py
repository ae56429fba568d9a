"""The only room that talks to Redis: connections, keys, the scripts in `lua/` and one method for each of them."""
