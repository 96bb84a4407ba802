"""The radiology information system, a plugin on the archive's event loop: not built yet, its place is here."""
