"""The danger: a failure taken for a success, and the sender deletes its only copy."""

from __future__ import annotations

import pytest
from pynetdicom import status as peer

from hounsfield.archive.wire import Category, Service, Status, describe_status

TABLES = {
    Service.ANY: peer.GENERAL_STATUS,
    Service.STORAGE: peer.STORAGE_SERVICE_CLASS_STATUS,
    Service.FIND: peer.QR_FIND_SERVICE_CLASS_STATUS,
    Service.MOVE: peer.QR_MOVE_SERVICE_CLASS_STATUS,
    Service.GET: peer.QR_GET_SERVICE_CLASS_STATUS,
}


@pytest.mark.parametrize("service", TABLES, ids=lambda service: service.value)
def test_categories_agree_with_pynetdicom(service: Service) -> None:
    for code, (category, _) in TABLES[service].items():
        assert describe_status(code, service).category.value == category.lower(), f"{code:04X}"


@pytest.mark.parametrize("service", Service)
def test_every_code_means_something_and_only_zero_is_success(service: Service) -> None:
    for code in range(0x10000):
        meaning = describe_status(code, service)
        assert meaning.meaning
        assert (meaning.category is Category.SUCCESS) is (code == 0)


@pytest.mark.parametrize("status", Status)
def test_every_status_we_send_is_in_a_table(status: Status) -> None:
    generic = ("failure", "failure of this service", "warning of this service")
    assert any(describe_status(status, service).meaning not in generic for service in Service)
