"""The two tables, of transfer syntaxes and of coders, as one for people: docs/conformance.md.

``python -m hounsfield.codecs.support_table`` prints it; a test says when the document is not what it prints.
"""

from __future__ import annotations

from hounsfield.codecs.coders import CODERS, FrameLayout
from hounsfield.codecs.registry import TRANSFER_SYNTAXES

_LAYOUTS = {
    FrameLayout.CELLS: "plain cells",
    FrameLayout.FRAGMENTS: "fragments, each frame its own",
    FrameLayout.STREAM: "one stream",
}


def markdown() -> str:
    """One row for every transfer syntax that is known here."""
    lines = [
        "| transfer syntax | UID | stored, given as stored | decoded by, in this order | encoded by "
        "| lossless | frames | isolated |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for uid, syntax in TRANSFER_SYNTAXES.items():
        coder = CODERS.get(uid)
        lossless = {True: "yes", False: "may lose", None: "–"}[syntax.lossless]
        name = f"{syntax.name} (retired)" if syntax.retired else syntax.name
        if coder is None:
            lines.append(f"| {name} | {uid} | yes | – | – | {lossless} | – | – |")
            continue
        decoders = ", ".join(dict.fromkeys(one.library for one in coder.decoders)) or "– (passed through)"
        encoders = ", ".join(one.library for one in coder.encoders) or "–"
        if coder.encoders and not coder.lossless and coder.encodes_lossless:
            encoders += ", without loss"
        isolated = "yes" if coder.isolated and coder.decoders else "no"
        layout = _LAYOUTS[coder.layout]
        lines.append(
            f"| {name} | {uid} | yes | {decoders} | {encoders} | {lossless} | {layout} | {isolated} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")  # noqa: T201
