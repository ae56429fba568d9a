"""How what several partitions answered becomes the answer of the queue: a file for each kind of thing.

Each function is given the arguments of a script and the replies of the partitions that were asked, and returns what the
script would have said of a queue without partitions.
"""
