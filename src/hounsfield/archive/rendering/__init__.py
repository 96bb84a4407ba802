"""Pixels as people see them: from stored values to JPEG, PNG and GIF (PS3.4 N.2). Pure functions, no I/O."""
