"""Who is served next, in pure Python: the rules, the model that the scripts are held against, the simulator."""
