"""Who is let in, who is not, and with which words."""

from __future__ import annotations

import pytest

from hounsfield.archive.net.policy import ListenerPolicy, RemoteAe, networks
from hounsfield.archive.wire import AssociateRequest


def call(calling: str = "CT1", called: str = "HOUNSFIELD", **more: str) -> AssociateRequest:
    return AssociateRequest(called_ae=called, calling_ae=calling, contexts=(), **more)  # type: ignore[arg-type]


AES = {
    "MR1": RemoteAe("MR1", sources=("192.0.2.7", "2001:db8::/64")),
    "WS": RemoteAe("WS", host="192.0.2.9"),
}
NOBODY = ListenerPolicy(open=False)
LISTS = ListenerPolicy(
    open=False, calling_titles=frozenset({"CT1"}), sources=networks(["192.0.2.0/24", "2001:db8::1"])
)

TABLE = [
    # policy, calling, address, the reason's beginning or None
    (ListenerPolicy(), "ANY", "127.0.0.1", None),
    (ListenerPolicy(), "", "127.0.0.1", None),
    (NOBODY, "CT1", "192.0.2.1", "calling AE"),
    (NOBODY, "MR1", "192.0.2.7", None),
    (NOBODY, "MR1", "::ffff:192.0.2.7", None),
    (NOBODY, "MR1", "2001:db8::5", None),
    (NOBODY, "MR1", "192.0.2.8", "source address"),
    (NOBODY, "WS", "192.0.2.9", "calling AE"),  # known, but it may not call from anywhere
    (LISTS, "CT1", "192.0.2.200", None),
    (LISTS, "CT1", "2001:db8::1", None),
    (LISTS, "CT1", "198.51.100.1", "source address"),
    (LISTS, "CT2", "192.0.2.200", "calling AE"),
    (LISTS, "MR1", "192.0.2.7", None),  # through its own sources
    (LISTS, "MR1", "192.0.2.200", "source address"),
    (LISTS, "CT1", "not an address", "source address"),
    (ListenerPolicy(calling_titles=frozenset({"CT1"})), "CT1", "198.51.100.1", None),
    (ListenerPolicy(calling_titles=frozenset({"CT1"})), "ct1", "127.0.0.1", "calling AE"),
    (ListenerPolicy(sources=networks(["127.0.0.0/8"])), "X", "127.0.0.9", None),
    (ListenerPolicy(sources=networks(["127.0.0.0/8"])), "X", "192.0.2.1", "source address"),
]


@pytest.mark.parametrize(("policy", "calling", "address", "reason"), TABLE)
def test_calling_titles_and_sources(
    policy: ListenerPolicy, calling: str, address: str, reason: str | None
) -> None:
    refusal = policy.judge(call(calling), address, AES)
    if reason is None:
        assert refusal is None
    else:
        assert refusal is not None
        assert refusal.reason.startswith(reason)
        assert (refusal.reject.result, refusal.reject.source, refusal.reject.reason) == (1, 1, 3)


def test_called_title() -> None:
    policy = ListenerPolicy(called_titles=frozenset({"ARCHIVE"}))
    assert policy.judge(call(called="HOUNSFIELD"), "127.0.0.1") is None
    assert policy.judge(call(called="ARCHIVE"), "127.0.0.1") is None
    refusal = policy.judge(call(called="OTHER"), "127.0.0.1")
    assert refusal is not None
    assert (refusal.reject.result, refusal.reject.source, refusal.reject.reason) == (1, 1, 7)
    assert ListenerPolicy(check_called_title=False).judge(call(called="OTHER"), "127.0.0.1") is None


def test_application_context() -> None:
    refusal = ListenerPolicy().judge(call(application_context="1.2.3"), "127.0.0.1")
    assert refusal is not None
    assert (refusal.reject.result, refusal.reject.source, refusal.reject.reason) == (1, 1, 2)
