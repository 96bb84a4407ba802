"""What is asked for on the command line, as identifiers of queries and retrievals (PS3.4 C.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hounsfield.archive.cli.output import EXIT_USAGE, Failed

if TYPE_CHECKING:
    from hounsfield.archive.net.query_retrieve import QueryModel
    from hounsfield.archive.wire import AcceptedContext

Command = TypeVar("Command", bound=Callable[..., Any])
Model = dict[str, Any]

QUERY_RETRIEVE_LEVEL = 0x00080052
SPECIFIC_CHARACTER_SET = 0x00080005
UID_CHARS_MAX = 64
PATIENT_ID, STUDY_UID, SERIES_UID, INSTANCE_UID = 0x00100020, 0x0020000D, 0x0020000E, 0x00080018


class RetrieveLevel(Enum):
    """Query/Retrieve Level (0008,0052), and its unique key (PS3.4 C.6.1.1)."""

    PATIENT = "PATIENT"
    STUDY = "STUDY"
    SERIES = "SERIES"
    IMAGE = "IMAGE"

    @property
    def key(self) -> int:
        """The attribute that names one entity of this level."""
        return {"PATIENT": PATIENT_ID, "STUDY": STUDY_UID, "SERIES": SERIES_UID, "IMAGE": INSTANCE_UID}[
            self.value
        ]


# PS3.4 C.6.1.1, C.6.2.1, C.6.3.1
_LEVELS = {
    "patient": ("PATIENT", "STUDY", "SERIES", "IMAGE"),
    "study": ("STUDY", "SERIES", "IMAGE"),
    "patient-study-only": ("PATIENT", "STUDY"),
}
_UNIQUE = {level.key: level for level in RetrieveLevel}


def level_options(function: Command) -> Command:
    """``--level --model --relational --character-set``."""
    function = click.option(
        "--character-set",
        metavar="TERM",
        default="",
        help="Write the keys in this character set, e.g. 'ISO_IR 100'.  [default: ISO_IR 192 if not ASCII]",
    )(function)
    function = click.option(
        "--relational", is_flag=True, help="Propose relational queries: keys of any level, in any order."
    )(function)
    function = click.option(
        "--model",
        type=click.Choice(["patient", "study", "patient-study-only"]),
        help="The information model to use.  [default: study, or patient at the level patient]",
    )(function)
    return click.option(
        "--level",
        type=click.Choice(["patient", "study", "series", "image"]),
        help="What is asked for.  [default: what the keys name]",
    )(function)


def is_uid(text: str) -> bool:
    """Whether ``text`` can be a UID (PS3.5 9.1), leading zeros and all that devices write."""
    return 0 < len(text) <= UID_CHARS_MAX and all(
        part.isascii() and part.isdigit() for part in text.split(".")
    )


def parse_keys(words: Iterable[str]) -> dict[tuple[int, ...], str]:
    """``KEYWORD=VALUE``, ``gggg,eeee=VALUE``, ``SEQUENCE.KEYWORD=VALUE``: path → text, "" without ``=``.

    Raises Failed for what would ask for something else than it says: nothing is dropped that was given.
    """
    from hounsfield.archive.dicom.dictionary import vr_of
    from hounsfield.archive.dicom.query import parse_path

    keys: dict[tuple[int, ...], str] = {}
    for word in words:
        name, _, value = word.partition("=")
        path = parse_path(name)
        if path is None:
            raise Failed(
                f"{name!r} is no attribute: write its keyword or tag, then =VALUE to match, "
                "e.g. PatientName='DOE*' or 0010,0020=4711",
                EXIT_USAGE,
            )
        for place, tag in enumerate(path):
            inner = place < len(path) - 1
            if (inner and vr_of(tag) not in {"SQ", "UN"}) or (not inner and value and vr_of(tag) == "SQ"):
                raise Failed(
                    f"{name}: what is in a sequence is written SEQUENCE.KEY=VALUE, "
                    "e.g. RequestAttributesSequence.RequestedProcedureID=4711",
                    EXIT_USAGE,
                )
        before = keys.get(path, "")
        if before and value and before != value:
            raise Failed(f"{name} is given twice: a list is written {name}='A\\\\B'", EXIT_USAGE)
        keys[path] = before or value
    return keys


def split_words(words: Sequence[str]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Keys, and paths of UIDs (``STUDY[/SERIES[/INSTANCE]]``)."""
    keys, paths = [], []
    for word in words:
        parts = tuple(word.split("/"))
        if "=" in word or not all(part and set(part) <= set("0123456789.") for part in parts):
            keys.append(word)
        elif len(parts) > 3:
            raise Failed(f"{word!r}: write STUDY, STUDY/SERIES or STUDY/SERIES/INSTANCE", EXIT_USAGE)
        else:
            paths.append(parts)
    return keys, paths


def model_of_keys(keys: dict[tuple[int, ...], str]) -> Model:
    """The identifier as a DICOM JSON object; keys without a value are asked for, not matched."""
    from hounsfield.archive.dicom.dictionary import vr_of
    from hounsfield.archive.dicom.json_model import attributes_to_model

    model: Model = {}
    for path, text in keys.items():
        at = model
        for tag in path[:-1]:
            sequence = at.setdefault(f"{tag:08X}", {"vr": "SQ", "Value": [{}]})
            at = sequence["Value"][0]
        tag = path[-1]
        vr = vr_of(tag)
        if vr == "SQ":
            at.setdefault(f"{tag:08X}", {"vr": "SQ"})
        else:
            at.update(attributes_to_model(({tag: text}, {tag: vr})))
    return model


def encoded(model: Model, context: AcceptedContext, character_set: str) -> bytes:
    """The identifier's bytes. Raises Failed for what cannot be written."""
    from hounsfield.archive.dicom.from_json import ModelError
    from hounsfield.archive.net.query_retrieve import identifier_bytes

    try:
        return identifier_bytes(model, context, character_set)
    except ModelError as error:
        raise Failed(str(error), EXIT_USAGE) from error


def level_of(keys: dict[tuple[int, ...], str], named: str | None, otherwise: RetrieveLevel) -> RetrieveLevel:
    """``--level``, else the lowest level whose unique key has a value."""
    if named:
        return RetrieveLevel[named.upper()]
    valued = [
        _UNIQUE[path[0]] for path, text in keys.items() if len(path) == 1 and text and path[0] in _UNIQUE
    ]
    return max(valued, key=list(RetrieveLevel).index, default=otherwise)


def query_model(named: str | None, levels: Iterable[RetrieveLevel]) -> QueryModel:
    """``--model``, else study root, which has no level of patients, unless that is asked for."""
    from hounsfield.archive.net.query_retrieve import QueryModel

    if named:
        for level in levels:
            if level.value not in _LEVELS[named]:
                raise Failed(
                    f"the model {named} has no level {level.value.lower()}; --model chooses another",
                    EXIT_USAGE,
                )
        return QueryModel(named)
    return QueryModel.PATIENT if RetrieveLevel.PATIENT in levels else QueryModel.STUDY


def retrieval_identifiers(words: Sequence[str], level: str | None) -> list[tuple[RetrieveLevel, Model]]:
    """One identifier for each C-MOVE or C-GET: of the keys together, and of each path of UIDs.

    Instances of one series are one request with a list of UIDs (PS3.4 C.4.2.2.1).
    """
    key_words, paths = split_words(words)
    requests: list[dict[tuple[int, ...], str]] = []
    if key_words:
        requests.append(parse_keys(key_words))
    instances: dict[tuple[str, ...], list[str]] = {}
    for path in dict.fromkeys(paths):
        if len(path) == 3:
            instances.setdefault(path[:2], []).append(path[2])
            continue
        requests.append(dict(zip(((STUDY_UID,), (SERIES_UID,)), path, strict=False)))
    requests += [
        {(STUDY_UID,): study, (SERIES_UID,): series, (INSTANCE_UID,): "\\".join(uids)}
        for (study, series), uids in instances.items()
    ]
    if not requests:
        raise Failed("say what: STUDY[/SERIES[/INSTANCE]] UIDs, or keys such as PatientID=4711", EXIT_USAGE)
    models: list[tuple[RetrieveLevel, Model]] = []
    for keys in requests:
        at = level_of(keys, level, RetrieveLevel.STUDY)
        if not keys.get((at.key,)):
            raise Failed(
                f"at the level {at.value} a retrieval names {_keyword(at.key)}; "
                "`hounsfield find` finds it, --level changes the level",
                EXIT_USAGE,
            )
        models.append((at, model_of_keys({(QUERY_RETRIEVE_LEVEL,): at.value, **keys})))
    return models


def _keyword(tag: int) -> str:
    from hounsfield.archive.dicom.dictionary import KEYWORD_OF

    return KEYWORD_OF[tag]
