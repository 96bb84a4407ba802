"""Hounsfield: a fast, encrypted, tiered DICOM archive on trio, with a RIS as a plugin."""

__version__ = "0.1.0"
