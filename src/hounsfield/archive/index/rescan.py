"""What an object's row says of its attributes, told anew from its header: for rows of older releases.

Where the object is filed stays, since deletions and corrections name its UIDs; and so does everything
that the header does not tell: when and how it came, what was coerced then, how its frames lie and are
encoded.
"""

from __future__ import annotations

import msgspec

from hounsfield.archive.dicom.attributes import extract
from hounsfield.archive.dicom.coercion import applied
from hounsfield.archive.dicom.scan import scan
from hounsfield.archive.index.rows import ObjectRow
from hounsfield.codecs.registry import lookup
from hounsfield.storage_backends.api import Buffer


def rescanned(row: ObjectRow, header: Buffer) -> ObjectRow:
    """``row`` with the attributes that ``header`` has. Never raises on bytes.

    What stands behind the pixel data is not looked at: no attribute of the index belongs there.
    """
    found = extract(scan(header, lookup(row.transfer_syntax_uid)), header)
    if row.coerced is not None:
        found = applied(found, row.coerced.values)
    return msgspec.structs.replace(row, study=found.study, series=found.series, instance=found.instance)
