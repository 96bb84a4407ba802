"""Crash truth: every write, sync and acknowledgement of a whole server, and what a power cut may leave of it.

``library`` builds and drives the recorder (``recorder.c``), ``trace`` reads its log, ``disk`` says which
contents a power cut may leave, ``workload`` is what is recorded, ``recovery`` what must hold afterwards, and
``explore`` tries one after the other. Why, and what it found: docs/decisions/0009-crash-truth.md.
"""
