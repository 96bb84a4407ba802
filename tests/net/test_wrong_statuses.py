"""Every fate of an object has one status, and the status never promises more than what was done."""

from __future__ import annotations

import pytest

from hounsfield.archive.engine import errors
from hounsfield.archive.engine.errors import EngineError
from hounsfield.archive.engine.receiving import PROBLEM_SOP_MISMATCH
from hounsfield.archive.engine.types import Outcome, StoreResult
from hounsfield.archive.net.statuses import BY_ERROR, BY_OUTCOME, MISMATCH, answer_of, answer_to_error
from hounsfield.archive.wire import Category, Service, Status, describe_status

ERRORS = [
    value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, EngineError)
]
ANSWERS = [*BY_OUTCOME.values(), *BY_ERROR.values(), MISMATCH]


def result(outcome: Outcome, *warnings: str) -> StoreResult:
    return StoreResult(outcome, "1.2", "1.2.3", "1.2.4", "1.2.5", warnings)


@pytest.mark.parametrize("cls", ERRORS, ids=lambda cls: cls.__name__)
def test_every_engine_error_has_a_row_of_its_own(cls: type[EngineError]) -> None:
    assert cls in BY_ERROR
    category = describe_status(answer_to_error(cls("x")).status, Service.STORAGE).category
    assert category is Category.FAILURE


@pytest.mark.parametrize("cls", ERRORS, ids=lambda cls: cls.__name__)
def test_senders_are_told_to_try_again_exactly_when_it_helps(cls: type[EngineError]) -> None:
    assert (answer_to_error(cls("x")).status & 0xFF00 == Status.OUT_OF_RESOURCES) is cls.retry


def test_a_new_subclass_is_answered_as_its_parent() -> None:
    class FloodedError(errors.OutOfResourcesError):
        pass

    assert answer_to_error(FloodedError("x")).status is Status.OUT_OF_RESOURCES


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_has_a_row_and_only_what_is_kept_as_sent_is_plain_success(outcome: Outcome) -> None:
    category = describe_status(answer_of(result(outcome)).status, Service.STORAGE).category
    assert category is (
        Category.SUCCESS if outcome in (Outcome.STORED, Outcome.DUPLICATE) else Category.WARNING
    )


def test_a_command_that_names_another_instance_is_a_warning() -> None:
    assert answer_of(result(Outcome.STORED, PROBLEM_SOP_MISMATCH)).status == 0xB007
    assert answer_of(result(Outcome.STORED, "bad-text")).status == 0
    assert answer_of(result(Outcome.STORED, "bad-text", "truncated")).status == 0xB007
    assert answer_of(result(Outcome.CONFLICT, "truncated")).status == 0xB000
    assert answer_of(result(Outcome.CONFLICT, PROBLEM_SOP_MISMATCH)).status == 0xB000


def test_comments_fit_their_element() -> None:
    for answer in ANSWERS:
        assert answer.comment is None or len(answer.comment) <= 64
        assert (answer.comment is None) is (answer.status is Status.SUCCESS)
