"""``hounsfield find``."""

from __future__ import annotations

import json
from contextlib import aclosing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hounsfield.archive.cli.conversation import converse, heeding_interrupts, limits_for
from hounsfield.archive.cli.identifiers import (
    QUERY_RETRIEVE_LEVEL,
    SPECIFIC_CHARACTER_SET,
    RetrieveLevel,
    encoded,
    level_of,
    level_options,
    model_of_keys,
    parse_keys,
    query_model,
)
from hounsfield.archive.cli.options import config_options, effective_config, json_option
from hounsfield.archive.cli.output import (
    EXIT_INTERRUPTED,
    EXIT_PARTIAL,
    Failed,
    err,
    print_table,
    printable,
    remark,
)
from hounsfield.archive.cli.remote import remote_options, resolve

if TYPE_CHECKING:
    from hounsfield.archive.net.query_retrieve import Ended, Extensions, QueryModel
    from hounsfield.archive.net.scu import RemoteEntity, ScuLimits

Model = dict[str, Any]

_PATIENT = [("patient", "PatientName"), ("id", "PatientID")]
# What is asked for at each level, and the titles of its columns.
_COLUMNS: dict[RetrieveLevel, list[tuple[str, str]]] = {
    RetrieveLevel.PATIENT: [
        *_PATIENT,
        ("born", "PatientBirthDate"),
        ("sex", "PatientSex"),
        ("studies", "NumberOfPatientRelatedStudies"),
    ],
    RetrieveLevel.STUDY: [
        *_PATIENT,
        ("date", "StudyDate"),
        ("accession", "AccessionNumber"),
        ("modalities", "ModalitiesInStudy"),
        ("description", "StudyDescription"),
        ("series", "NumberOfStudyRelatedSeries"),
        ("instances", "NumberOfStudyRelatedInstances"),
        ("study UID", "StudyInstanceUID"),
    ],
    RetrieveLevel.SERIES: [
        ("modality", "Modality"),
        ("number", "SeriesNumber"),
        ("description", "SeriesDescription"),
        ("body part", "BodyPartExamined"),
        ("instances", "NumberOfSeriesRelatedInstances"),
        ("series UID", "SeriesInstanceUID"),
    ],
    RetrieveLevel.IMAGE: [
        ("number", "InstanceNumber"),
        ("SOP class", "SOPClassUID"),
        ("rows", "Rows"),
        ("columns", "Columns"),
        ("frames", "NumberOfFrames"),
        ("instance UID", "SOPInstanceUID"),
    ],
}
_OF_THE_REQUEST = {QUERY_RETRIEVE_LEVEL, SPECIFIC_CHARACTER_SET}
_RIGHT = ["studies", "series", "instances", "number", "rows", "columns", "frames"]


@click.command(
    "find",
    epilog="""\b
Examples:
  hounsfield find PACS PatientName='DOE*' StudyDate=20260101-20261231
  hounsfield find PACS@192.0.2.10:104 PatientID=4711 --level patient
  hounsfield find PACS --level series StudyInstanceUID=1.2.840.113619.2.1 ProtocolName
  hounsfield find PACS ModalitiesInStudy=CT --limit 20 --json | jq -r '."0020000D".Value[0]'
  hounsfield find PACS PatientName='MÜLLER*' --character-set 'ISO_IR 100'

Keys are DICOM keywords or tags (00100010 or 0010,0010): KEY=VALUE is matched, with * and ?,
lists as A\\\\B, dates and times as FROM-TO; KEY alone is returned. In sequences: SEQUENCE.KEY=VALUE.
Below the study, a query names what it is in (StudyInstanceUID=…), or is --relational.""",
)
@click.argument("target")
@click.argument("keys", nargs=-1, metavar="[KEY[=VALUE]]...")
@level_options
@click.option("--include", "include", metavar="KEY", multiple=True, help="Return this too. Repeatable.")
@click.option("--limit", type=click.IntRange(1), help="Cancel the query after so many answers.")
@click.option("--fuzzy", is_flag=True, help="Propose fuzzy matching of names.")
@click.option("--date-time", is_flag=True, help="Propose that a date and a time range are one range.")
@remote_options
@config_options
@json_option
def command(
    *,
    target: str,
    keys: tuple[str, ...],
    level: str | None,
    model: str | None,
    relational: bool,
    character_set: str,
    include: tuple[str, ...],
    limit: int | None,
    fuzzy: bool,
    date_time: bool,
    timeout: float,
    config_file: Path | None,
    overrides: tuple[str, ...],
    data: str | None,
    as_json: bool,
    **remote_words: Any,
) -> int:
    """Search an application entity for patients, studies, series or images (C-FIND).

    TARGET is [AE@]HOST:PORT, or the title of an AE in config.toml or from `hounsfield ae add`. With --json
    every answer is a DICOM JSON object on a line of its own, as it comes. Ctrl-C cancels the query.

    Exit codes: 0 all answers are here, 4 some of them could not be read, 1 it failed, 3 nobody answers.
    """
    from hounsfield.archive.net.query_retrieve import Extensions, RefusedError

    asked = parse_keys([*keys, *include])
    at = level_of(asked, level, RetrieveLevel.STUDY)
    if level is None and at is RetrieveLevel.PATIENT:
        at = RetrieveLevel.STUDY  # a patient's ID alone asks for the patient's studies
    chosen = query_model(model, [at])
    columns = [(title, parse_keys([keyword])) for title, keyword in _COLUMNS[at]]
    wanted: dict[tuple[int, ...], str] = {path: "" for _, paths in columns for path in paths}
    identifier = model_of_keys({(QUERY_RETRIEVE_LEVEL,): at.value, **wanted, **asked})
    extensions = Extensions(relational=relational, date_time=date_time, fuzzy=fuzzy)
    remote = resolve(target, effective_config(config_file, overrides, data), **remote_words)
    shown = {paths: title for title, paths in ((t, next(iter(p))) for t, p in columns)}
    shown |= {path: _title(path) for path in asked if path not in shown}
    query = _Query(remote, chosen, identifier, character_set, extensions, limit, as_json, limits_for(timeout))
    query.matched = [
        path for path, text in asked.items() if text.strip("*") and path[-1] not in _OF_THE_REQUEST
    ]
    try:
        with query.status or nullcontext():
            ended = converse(query.ask)
    except RefusedError as error:
        above = [one.key for one in list(RetrieveLevel)[1 : list(RetrieveLevel).index(at)]]
        needs = [_title((key,)) for key in above if not asked.get((key,))]
        hint = f"; at this level it may want {' and '.join(needs)}, or --relational" if needs else ""
        raise Failed(f"{remote}: {error}{hint}") from error
    if not as_json:
        print_table(
            list(shown.values()),
            [[_text(answer, path) for path in shown] for answer in query.answers],
            right=_RIGHT,
        )
    return query.outcome(ended)


class _Query:
    """One C-FIND."""

    def __init__(  # noqa: PLR0917 - made in one place
        self,
        remote: RemoteEntity,
        model: QueryModel,
        identifier: Model,
        character_set: str,
        extensions: Extensions,
        limit: int | None,
        as_json: bool,
        limits: ScuLimits,
    ) -> None:
        self._remote = remote
        self._model = model
        self._identifier = identifier
        self._character_set = character_set
        self._extensions = extensions
        self._limit = limit
        self._as_json = as_json
        self._limits = limits
        self._interrupted = False
        self._limited = False
        self._unreadable = 0
        self._count = 0
        self.answers: list[Model] = []
        self.matched: list[tuple[int, ...]] = []
        """Keys with a value: an answer that has none there cannot have been matched."""
        self._unmatched: dict[tuple[int, ...], int] = {}
        self.status = err().status("no answer yet") if err().is_terminal and not as_json else None

    async def ask(self) -> Ended | None:
        """How it ended; None when we cancelled it at the limit."""
        from hounsfield.archive.net import query_retrieve
        from hounsfield.archive.net.scu import Offer, associate

        uid = self._model.find_uid
        offer = Offer(extended=self._extensions.negotiation(uid))
        contexts = [query_retrieve.proposal(1, uid)]
        async with associate(self._remote, contexts, self._limits, offer) as association:
            context = association.context_for(uid)
            for missing in self._extensions.missing(association.extended.get(uid, b"")):
                remark(f"note: {self._remote} does not agree to {missing}")
            identifier = encoded(self._identifier, context, self._character_set)
            message_id = association.next_message_id()
            async with (
                heeding_interrupts(lambda: association.cancel(context, message_id)) as interrupts,
                aclosing(
                    query_retrieve.find(association, context, identifier, message_id=message_id)
                ) as answers,
            ):
                async for answer in answers:
                    if isinstance(answer, query_retrieve.Ended):
                        self._interrupted = interrupts.asked
                        return answer
                    if isinstance(answer, query_retrieve.UnreadableAnswer):
                        self._unreadable += 1
                        continue
                    self._count += 1
                    self._keep(answer)
                    if self._count == self._limit:
                        self._limited = True
                        break
        return None

    def _keep(self, answer: Model) -> None:
        for path in self.matched:
            if not _text(answer, path):
                self._unmatched[path] = self._unmatched.get(path, 0) + 1
        if self._as_json:
            click.echo(json.dumps(answer, ensure_ascii=False))
            return
        self.answers.append(answer)
        if self.status is not None:
            self.status.update(f"{self._count} answers")

    def outcome(self, ended: Ended | None) -> int:
        """What is said at the end, and the exit code."""
        from hounsfield.archive.wire import Category

        for path, count in self._unmatched.items():  # PS3.4 C.2.2.1.3: it need not support every key
            remark(f"note: {count} answers say nothing of {_title(path)}: {self._remote} may not match it")
        if self._unreadable:
            remark(f"{self._unreadable} more answers are no whole data sets, and were left out")
        if self._limited:
            remark(f"there may be more than {self._limit}: --limit sets how many are taken")
            return EXIT_PARTIAL if self._unreadable else 0
        if self._interrupted:
            remark(f"cancelled after {self._count} answers")
            return EXIT_INTERRUPTED
        if ended is not None and ended.category is not Category.SUCCESS:
            raise Failed(f"{self._remote}: {ended.meaning}, after {self._count} answers")
        return EXIT_PARTIAL if self._unreadable else 0


def _title(path: tuple[int, ...]) -> str:
    from hounsfield.archive.dicom.dictionary import KEYWORD_OF

    return ".".join(KEYWORD_OF.get(tag, f"{tag:08X}") for tag in path)


def _text(answer: Model, path: tuple[int, ...]) -> str:
    """The values at ``path`` as one line, safe for a terminal."""
    at: list[Any] = [answer]
    for tag in path:
        at = [
            value
            for item in at
            if isinstance(item, dict)
            for value in item.get(f"{tag:08X}", {}).get("Value") or ()
        ]
    return printable(", ".join(_word(value) for value in at if value is not None)).rstrip("^ ")


def _word(value: Any) -> str:
    if isinstance(value, dict):  # a name, in its groups; or an item
        return " = ".join(group if isinstance(group, str) else "…" for group in value.values())
    return str(value)
