"""``hounsfield import``: existing studies come in, from folders, discs, other archives and DICOMweb servers.

Why it is made so: docs/decisions/0026-import.md.
"""
