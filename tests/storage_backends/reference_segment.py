"""The segment format written a second time, from docs/segment-format.md alone.

It imports nothing of ours, so that the document, the implementation and the vectors check each
other. ``python reference_segment.py`` rewrites the vectors; a change in them is a change of format.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import zlib
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

VECTORS = Path(__file__).parent / "vectors" / "segment.json"
CHUNK = 1_048_576
BLOCK = 4096

Record = tuple[bytes, int, list[bytes]]  # record id, kind, plaintext parts


def header(segment: bytes) -> bytes:
    copy = b"\x89HFSEG\r\n" + (1).to_bytes(4, "little") + bytes(4) + segment + bytes(4060)
    return 2 * (copy + zlib.crc32(copy).to_bytes(4, "little"))


def sealed_part(record_key: bytes, bound: bytes, part: int, plain: bytes) -> bytes:
    pieces = [plain[at : at + CHUNK] for at in range(0, len(plain), CHUNK)] or [b""]
    sealed = b""
    for number, piece in enumerate(pieces):
        last = b"\x01" if number == len(pieces) - 1 else b"\x00"
        nonce = part.to_bytes(4, "big") + number.to_bytes(7, "big") + last
        sealed += AESGCM(record_key).encrypt(nonce, piece, bound)
    return sealed


def record(segment: bytes, segment_key: bytes, content: Record) -> bytes:
    record_id, kind, parts = content
    key = hmac.digest(segment_key, b"hounsfield/segment/1/record\0" + record_id + b"\x01", hashlib.sha256)
    body = b""
    for number, plain in enumerate(parts):
        bound = b"HFSEGMENT/1\0" + segment + record_id
        bound += b"".join(value.to_bytes(4, "little") for value in (kind, number, len(parts)))
        body += sealed_part(key, bound, number, plain)
    table = b"".join(len(plain).to_bytes(8, "little") for plain in parts)
    head = b"\xf1\x9dHFREC\x0e" + record_id
    head += kind.to_bytes(4, "little") + len(parts).to_bytes(4, "little")
    head += (48 + len(table) + len(body)).to_bytes(8, "little")
    head += zlib.crc32(table).to_bytes(4, "little")
    return head + zlib.crc32(head).to_bytes(4, "little") + table + body


def padding(length: int) -> bytes:
    return bytes(-length % BLOCK)


def packed(data: bytes) -> list[str | int]:
    """Hexadecimal, with long runs of zeros as their number."""
    runs: list[str | int] = []
    while data:
        start = data.find(bytes(64))
        if start < 0:
            start = len(data)
        if start:
            runs.append(data[:start].hex())
        rest = data[start:]
        data = rest.lstrip(b"\0")
        if len(rest) > len(data):
            runs.append(len(rest) - len(data))
    return runs


def unpacked(runs: list[str | int]) -> bytes:
    return b"".join(bytes(run) if isinstance(run, int) else bytes.fromhex(run) for run in runs)


def vectors() -> dict[str, object]:
    segment, key = bytes(range(0x10, 0x20)), bytes(range(0x40, 0x60))
    other_segment, other_key = bytes(range(0x20, 0x30)), bytes(range(0x60, 0x80))
    one: Record = (bytes(range(0xA0, 0xB0)), 1, [b"row one", b"header one", b"frame 1a", b"frame 1b"])
    two: Record = (bytes(range(0xB0, 0xC0)), 1, [b"row two", b"header two", b"frame 2a", b"frame 2b"])
    three: Record = (bytes(range(0xC0, 0xD0)), 7, [b"", b""])
    records = [record(segment, key, content) for content in (one, two, three)]
    starts = [8192, 8192 + len(records[0]), 8192 + len(records[0]) + len(records[1])]
    whole = header(segment) + b"".join(records)
    part_2 = starts[0] + 48 + 4 * 8 + (7 + 16) + (10 + 16)  # frame 1a; 1b follows at +24, both 24 long
    part_2_of_two = part_2 + len(records[0])

    def opens(start: int, content: Record) -> dict[str, object]:
        return {
            "record": content[0].hex(),
            "offset": start,
            "kind": content[1],
            "parts": [p.hex() for p in content[2]],
        }

    good = [opens(start, content) for start, content in zip(starts, (one, two, three), strict=True)]

    def broken(index: int, *bad_parts: int) -> dict[str, object]:
        return {
            **good[index],
            "parts": [None if n in bad_parts else p for n, p in enumerate(good[index]["parts"])],
        }

    def damage(offset: int, length: int, reason: str) -> dict[str, object]:
        return {"damage": reason, "offset": offset, "length": length}

    def flipped(at: int) -> bytes:
        return whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]

    def swapped(first: int, second: int, length: int) -> bytes:
        data = bytearray(whole)
        data[first : first + length], data[second : second + length] = (
            whole[second : second + length],
            whole[first : first + length],
        )
        return bytes(data)

    first_group = header(segment) + records[0] + records[1]
    first_group += padding(len(first_group))
    in_blocks = first_group + records[2] + padding(len(first_group + records[2]))
    third = opens(len(first_group), three)
    two_end = starts[2]  # where the padding of the first group begins
    foreign = record(other_segment, other_key, two)
    ids, same_key = {"segment": segment.hex(), "key": key.hex()}, key.hex()
    cases: list[tuple[str, str, bytes, list[dict[str, object]]]] = [
        ("ok", same_key, whole, good),
        ("header copy tampered", same_key, flipped(20), [damage(0, 4096, "header damaged"), *good]),
        (
            "second header copy tampered",
            same_key,
            flipped(8191),
            [damage(4096, 4096, "header damaged"), *good],
        ),
        (
            "marker tampered",
            same_key,
            flipped(starts[1]),
            [good[0], damage(starts[1], len(records[1]), "framing damaged"), good[2]],
        ),
        (
            "record id tampered",
            same_key,
            flipped(starts[1] + 8),
            [good[0], damage(starts[1], len(records[1]), "framing damaged"), good[2]],
        ),
        (
            "part table tampered",
            same_key,
            flipped(starts[1] + 48),
            [good[0], damage(starts[1], len(records[1]), "part table damaged"), good[2]],
        ),
        (
            "row tampered",
            same_key,
            flipped(starts[1] + 48 + 32),
            [good[0], damage(starts[1], len(records[1]), "row does not open"), good[2]],
        ),
        ("frame tampered", same_key, flipped(part_2), [broken(0, 2), good[1], good[2]]),
        (
            "parts swapped within a record",
            same_key,
            swapped(part_2, part_2 + 24, 24),
            [broken(0, 2, 3), *good[1:]],
        ),
        (
            "parts swapped between records",
            same_key,
            swapped(part_2, part_2_of_two, 24),
            [broken(0, 2), broken(1, 2), good[2]],
        ),
        (
            "record from another segment",
            same_key,
            whole + foreign,
            [*good, damage(len(whole), len(foreign), "row does not open")],
        ),
        (
            "kind changed, checksums made to fit",
            same_key,
            header(segment) + _with_kind(records[0], 2) + whole[starts[1] :],
            [damage(starts[0], len(records[0]), "row does not open"), *good[1:]],
        ),
        (
            "truncated",
            same_key,
            whole[: starts[2] - 1],
            [good[0], damage(starts[1], len(records[1]) - 1, "torn tail")],
        ),
        (
            "truncated in the head",
            same_key,
            whole[: starts[1] + 5],
            [good[0], damage(starts[1], 5, "torn tail")],
        ),
        (
            "wrong key",
            other_key.hex(),
            whole,
            [damage(s, len(r), "row does not open") for s, r in zip(starts, records, strict=True)],
        ),
        ("two padded groups", same_key, in_blocks, [*good[:2], third]),
        (
            "padding tampered",
            same_key,
            in_blocks[: two_end + 100] + b"\x01" + in_blocks[two_end + 101 :],
            [*good[:2], damage(two_end, len(first_group) - two_end, "framing damaged"), third],
        ),
        ("truncated in the padding", same_key, in_blocks[: two_end + 100], good[:2]),
        (
            "a block of zeros is not padding",
            same_key,
            first_group + bytes(BLOCK) + records[2],
            [
                *good[:2],
                damage(len(first_group), BLOCK, "framing damaged"),
                opens(len(first_group) + BLOCK, three),
            ],
        ),
    ]
    long = bytes(range(256)) * 4096 + b"!"
    long_record = record(segment, key, (one[0], 1, [b"row", long]))
    return {
        "format": "docs/segment-format.md version 1",
        "notation": "bytes: hexadecimal strings, and numbers that stand for so many zero bytes",
        "write": {
            **ids,
            "records": [
                {"record": r.hex(), "kind": k, "parts": [p.hex() for p in ps]}
                for r, k, ps in (one, two, three)
            ],
            "bytes": packed(whole),
        },
        "write_in_blocks": {
            **ids,
            "groups": [
                [{"record": r.hex(), "kind": k, "parts": [p.hex() for p in ps]} for r, k, ps in group]
                for group in ((one, two), (three,))
            ],
            "bytes": packed(in_blocks),
        },
        "write_long": {
            **ids,
            "record": one[0].hex(),
            "kind": 1,
            "row": b"row".hex(),
            "second_part": "bytes 00 to ff 4096 times, then 21: one byte more than a chunk",
            "record_bytes": len(long_record),
            "record_sha256": hashlib.sha256(long_record).hexdigest(),
        },
        "write_in_pieces": in_pieces(segment, key),
        "packs": [
            pack("objects", segment, key, [one, two], blocks=False),
            pack("in blocks", segment, key, [one, two], blocks=True),
            pack("nothing", segment, key, [], blocks=False),
        ],
        "read": [
            {"name": name, "segment": segment.hex(), "key": used, "bytes": packed(data), "expect": expect}
            for name, used, data, expect in cases
        ],
    }


def in_pieces(segment: bytes, key: bytes) -> dict[str, object]:
    """A large object of 250 bytes in pieces of 100: kind 4 each, then its own record with the two tables."""
    data = bytes(range(250))
    ids = [bytes(range(first, first + 16)) for first in (0xA0, 0xB0, 0xC0, 0xD0)]
    whole = header(segment)
    table = b""
    for number, start in enumerate(range(0, len(data), 100)):
        table += ids[number] + len(whole).to_bytes(8, "little")
        content: Record = (ids[number], 4, [number.to_bytes(8, "little"), data[start : start + 100]])
        whole += record(segment, key, content)
    places = (20, 120, 200, 240)  # three frames that are not equally long; ten bytes follow them
    frames = b"".join(place.to_bytes(8, "little") for place in places)
    parts = [b"row", data[:20], table, frames]
    offset = len(whole)
    whole += record(segment, key, (ids[3], 1, parts))
    return {
        "segment": segment.hex(),
        "key": key.hex(),
        "piece_bytes": 100,
        "data": data.hex(),
        "record_ids": [one.hex() for one in ids],
        "object": {"kind": 1, "offset": offset, "row": parts[0].hex(), "header": parts[1].hex()},
        "frame_table": frames.hex(),
        "piece_table": table.hex(),
        "bytes": packed(whole),
    }


def zstd_frame(data: bytes) -> bytes:
    """A zstd frame (RFC 8878) of one raw block, so that it is the same whichever compressor there is."""
    length = len(data).to_bytes(4, "little")
    block = (len(data) << 3 | 1).to_bytes(3, "little")
    return b"\x28\xb5\x2f\xfd" + b"\xa0" + length + block + data


def pack(name: str, segment: bytes, key: bytes, records: list[Record], *, blocks: bool) -> dict[str, object]:
    """Records, then contents (kind 5) and end (kind 6), each synced by itself, so that each ends a group."""
    contents_id, end_id = bytes(range(0xD0, 0xE0)), bytes(range(0xE0, 0xF0))
    whole = header(segment)
    entries = b""
    listed = []
    for record_id, kind, parts in records:
        entries += record_id + kind.to_bytes(4, "little") + len(parts).to_bytes(4, "little")
        entries += len(whole).to_bytes(8, "little")
        entries += b"".join(len(plain).to_bytes(8, "little") for plain in parts) + parts[0]
        listed.append({
            "record": record_id.hex(), "kind": kind, "offset": len(whole), "parts": [p.hex() for p in parts],
        })  # fmt: skip
        whole += record(segment, key, (record_id, kind, parts))
    whole += padding(len(whole)) if blocks and records else b""
    contents_at = len(whole)
    whole += record(segment, key, (contents_id, 5, [b"row of the contents", zstd_frame(entries)]))
    whole += padding(len(whole)) if blocks else b""
    digest_key = hmac.digest(key, b"hounsfield/pack/1/digest\0\x01", hashlib.sha256)
    digest = AESGCM(digest_key).encrypt(bytes(12), b"", whole)
    numbers = (contents_at, len(whole), len(records))
    end = b"".join(number.to_bytes(8, "little") for number in numbers) + digest
    end_at = len(whole)
    whole += record(segment, key, (end_id, 6, [end]))
    whole += padding(len(whole)) if blocks else b""
    return {
        "name": name,
        "segment": segment.hex(),
        "key": key.hex(),
        "blocks": blocks,
        "records": listed,
        "record_ids": [contents_id.hex(), end_id.hex()],
        "row": b"row of the contents".hex(),
        "entries": entries.hex(),
        "contents_at": contents_at,
        "end_at": end_at,
        "objects": len(records),
        "digest": digest.hex(),
        "bytes": packed(whole),
    }


def _with_kind(data: bytes, kind: int) -> bytes:
    head = data[:24] + kind.to_bytes(4, "little") + data[28:44]
    return head + zlib.crc32(head).to_bytes(4, "little") + data[48:]


if __name__ == "__main__":
    VECTORS.write_text(json.dumps(vectors(), indent=1) + "\n")
