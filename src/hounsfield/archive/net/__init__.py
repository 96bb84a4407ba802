"""DICOM over TCP: the listener with its service providers, and calling others.

``listener`` accepts, ``connection`` serves one association, ``providers`` do what commands ask; ``policy``,
``negotiation`` and ``statuses`` are the pure tables they decide by. ``scu`` calls others, ``survey`` and
``send`` send files.
"""
