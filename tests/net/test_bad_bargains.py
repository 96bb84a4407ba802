"""What is agreed to: every storage class in any syntax, nothing else, and no worse syntax than need be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom._uid_dict import UID_dictionary

from hounsfield.archive.net.negotiation import (
    STORAGE_SUPPORT,
    VERIFICATION,
    StorageRule,
    Terms,
    choose_transfer_syntax,
    is_storage,
    negotiate,
)
from hounsfield.archive.wire import (
    AssociateRequest,
    AsynchronousOperations,
    CommonExtendedNegotiation,
    ContextResult,
    ExtendedNegotiation,
    PresentationContext,
    RoleSelection,
    UserInformation,
)
from hounsfield.codecs.registry import TRANSFER_SYNTAXES

CT = "1.2.840.10008.5.1.4.1.1.2"
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
BIG, DEFLATED = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
BASELINE, LOSSLESS, J2K = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.90"
PRIVATE_SYNTAX = "1.3.6.1.4.1.99999.1"

NOT_OBJECTS = {"1.2.840.10008.1.3.10", "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.2"}
STANDARD_STORAGE = [
    uid
    for uid, row in UID_dictionary.items()
    if row[1] == "SOP Class" and "Storage" in row[0] and uid not in NOT_OBJECTS
]
OTHERS = [
    uid
    for uid, row in UID_dictionary.items()
    if uid not in STANDARD_STORAGE and uid.startswith("1.2.840.10008.") and row[0]
]


def request(*contexts: PresentationContext, user: UserInformation | None = None) -> AssociateRequest:
    return AssociateRequest(
        called_ae="A", calling_ae="B", contexts=contexts, user=user or UserInformation(max_pdu_length=16384)
    )


def test_every_storage_class_of_the_standard_is_taken_and_no_other_service() -> None:
    assert len(STANDARD_STORAGE) > 200
    assert [uid for uid in STANDARD_STORAGE if not is_storage(uid)] == []
    assert [uid for uid in OTHERS if is_storage(uid)] == []


def test_private_classes_are_objects_unless_their_owner_says_otherwise() -> None:
    private = "1.2.840.113619.4.26"
    assert is_storage(private)
    assert not is_storage(private, StorageRule.STANDARD_ONLY)
    assert is_storage("1.2.840.10008.5.1.4.1.1.9999", StorageRule.STANDARD_ONLY)  # next year's
    storage = {private: CommonExtendedNegotiation(private, "1.2.840.10008.4.2", (CT,))}
    query = {private: CommonExtendedNegotiation(private, "1.2.840.10008.5.1.4.1.2.1.1")}
    assert is_storage(private, common=storage)
    assert not is_storage(private, common=query)
    assert not is_storage("")


@pytest.mark.parametrize(
    ("proposed", "chosen"),
    [
        ([IMPLICIT], IMPLICIT),
        ([IMPLICIT, EXPLICIT], EXPLICIT),
        ([BIG, IMPLICIT], IMPLICIT),
        ([BIG, DEFLATED], DEFLATED),
        ([BIG], BIG),
        ([EXPLICIT, LOSSLESS], EXPLICIT),  # it has native pixels: nobody compresses for us
        ([LOSSLESS, EXPLICIT, IMPLICIT], LOSSLESS),  # it has them compressed: nobody decompresses for us
        ([BASELINE, EXPLICIT], BASELINE),
        ([BASELINE, LOSSLESS, J2K], LOSSLESS),  # it can do both, so let it lose nothing
        ([J2K, LOSSLESS], J2K),
        ([PRIVATE_SYNTAX, EXPLICIT], PRIVATE_SYNTAX),
        ([EXPLICIT, PRIVATE_SYNTAX], EXPLICIT),
    ],
)
def test_transfer_syntax(proposed: list[str], chosen: str) -> None:
    assert choose_transfer_syntax(proposed) == chosen


@given(st.lists(st.sampled_from([*TRANSFER_SYNTAXES, PRIVATE_SYNTAX, "garbage"]), min_size=1, unique=True))
def test_the_chosen_syntax_was_proposed(proposed: list[str]) -> None:
    assert choose_transfer_syntax(proposed) in proposed


def test_each_context_is_answered_for_itself() -> None:
    accept = negotiate(
        request(
            PresentationContext(1, VERIFICATION, (IMPLICIT,)),
            PresentationContext(3, CT, (IMPLICIT, EXPLICIT)),
            PresentationContext(5, "1.2.840.10008.5.1.4.1.2.2.1", (IMPLICIT,)),  # study root FIND
            PresentationContext(7, "1.2.3.4.5", (PRIVATE_SYNTAX,)),
            PresentationContext(9, CT, ()),
            PresentationContext(11, "1.2.840.10008.5.1.4.1.1.4", (EXPLICIT,)),
        ),
        Terms(pdu_bytes_max=65536, refused_sop_classes={"1.2.840.10008.5.1.4.1.1.4"}),
    )
    assert [(r.context_id, r.result, r.transfer_syntax) for r in accept.contexts] == [
        (1, ContextResult.ACCEPTANCE, IMPLICIT),
        (3, ContextResult.ACCEPTANCE, EXPLICIT),
        (5, ContextResult.ABSTRACT_SYNTAX_NOT_SUPPORTED, IMPLICIT),
        (7, ContextResult.ACCEPTANCE, PRIVATE_SYNTAX),
        (9, ContextResult.TRANSFER_SYNTAXES_NOT_SUPPORTED, ""),
        (11, ContextResult.ABSTRACT_SYNTAX_NOT_SUPPORTED, EXPLICIT),
    ]
    assert accept.user.max_pdu_length == 65536
    assert accept.user.asynchronous_operations is None
    assert accept.user.roles == ()


def test_items_of_user_information_are_answered() -> None:
    accept = negotiate(
        request(
            PresentationContext(1, CT, (EXPLICIT,)),
            user=UserInformation(
                max_pdu_length=16384,
                asynchronous_operations=AsynchronousOperations(8, 0),
                roles=(RoleSelection(CT, scu=True, scp=True), RoleSelection("1.2.3", scu=True, scp=False)),
                extended=(ExtendedNegotiation(CT, b"\2\0\0\0\0\0"), ExtendedNegotiation("1.2.3", b"\1")),
            ),
        ),
        Terms(pdu_bytes_max=16384, operations_max=(4, 2)),
    )
    assert accept.user.asynchronous_operations == AsynchronousOperations(4, 2)
    assert accept.user.roles == (RoleSelection(CT, scu=True, scp=False),)
    assert accept.user.extended == (ExtendedNegotiation(CT, STORAGE_SUPPORT),)


def test_who_asks_is_told_that_attributes_may_be_coerced() -> None:
    """PS3.4 B.3.1: element coercion 1, and signatures are not kept whole."""
    asked = request(
        PresentationContext(1, CT, (EXPLICIT,)),
        user=UserInformation(
            max_pdu_length=16384, extended=(ExtendedNegotiation(CT, bytes((2, 0, 3, 0, 1, 0))),)
        ),
    )
    accept = negotiate(asked, Terms(pdu_bytes_max=16384, coerces=True))
    assert accept.user.extended == (ExtendedNegotiation(CT, bytes((2, 0, 1, 0, 1, 0))),)
