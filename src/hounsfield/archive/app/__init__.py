"""The composition root: the only place where objects are wired, and the processes that run them.

``supervisor`` starts workers and keeps them running in their ``place``, with what ``premises`` opened once;
``worker`` is one of them, ``boot`` and ``talking`` are what passes between the two, ``scoreboard`` and
``wakeups`` are what workers share, ``control`` is how the command line talks to them.
"""
