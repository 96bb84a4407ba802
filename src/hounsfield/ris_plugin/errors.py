"""What the RIS refuses, and why. Texts are for the person who asked, and name no patient."""

from __future__ import annotations


class RisError(Exception):
    """Root of what the RIS raises on purpose: nothing has changed. ``retry``: whether later can be better."""

    retry = False
    status = 400
    """Of HTTP (RFC 9110 15)."""


class UnknownError(RisError):
    """There is no such record."""

    status = 404


class ForbiddenError(RisError):
    """The actor's roles do not permit the action."""

    status = 403


class NotNowError(RisError):
    """The record is in a state in which that cannot be done, or another rule forbids it now."""

    status = 409


class StaleError(RisError):
    """Somebody else has changed the record since it was read."""

    status = 412
    retry = True


class InvalidError(RisError):
    """A value cannot be; ``field`` says which."""

    status = 422

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field
