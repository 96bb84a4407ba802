"""The radiology information system: a plugin on the archive's event loop. It begins in ``plugin.py``."""
