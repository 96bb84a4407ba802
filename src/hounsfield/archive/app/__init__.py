"""The composition root: the only place where objects are wired, and the processes that run them.

``supervisor`` opens sockets and starts workers, ``worker`` is one of them, ``boot`` is what passes
between the two, ``scoreboard`` and ``wakeups`` are what workers share, ``control`` is how the command
line talks to them.
"""
