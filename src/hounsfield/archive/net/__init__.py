"""DICOM over TCP: the listener with its service providers, and calling others.

``listener`` accepts, ``connection`` serves one association, ``providers`` do what short commands ask and
``operation`` runs the long ones of ``services``; ``policy``, ``negotiation`` and ``statuses`` are the pure
tables they decide by. ``scu`` calls others, ``survey`` and ``send`` send files.
"""
