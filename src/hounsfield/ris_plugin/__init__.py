"""The radiology information system, a plugin on the archive's event loop. Not built yet; it goes here."""
