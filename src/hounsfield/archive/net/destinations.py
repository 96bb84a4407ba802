"""Whom we can call, by title: address, titles and TLS of the application entities that are known.

remote = destinations.find("WORKSTATION")       # None: nobody of that title, or it only calls us
async with associate(remote, contexts) as association: ...
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hounsfield.archive.net.policy import RemoteAe
from hounsfield.archive.net.scu import RemoteEntity
from hounsfield.archive.net.tls import client_context

__all__ = ["ClientTls", "Destinations"]


@dataclass(frozen=True, slots=True)
class ClientTls:
    """What we show and whom we trust when we call with TLS, "" for none; an AE's own entry goes before it."""

    certificate: str = ""
    key: str = ""
    ca: str = ""
    crl: str = ""
    """Of ``ca``, and only of it: what an AE's own authority revoked stands in that AE's list."""


class Destinations:
    """Known AEs as entities to call. TLS contexts are made when they are first needed, and kept."""

    def __init__(
        self,
        known: Callable[[], Mapping[str, RemoteAe]],
        *,
        ae_title: str = "HOUNSFIELD",
        tls: ClientTls | None = None,
    ) -> None:
        """``known`` gives every known AE by title, as of now; ``ae_title`` is how we call ourselves."""
        self._known = known
        self._contexts: dict[tuple[object, ...], ssl.SSLContext] = {}
        self.load(ae_title=ae_title, tls=tls or ClientTls())

    def load(self, *, ae_title: str, tls: ClientTls) -> None:
        """Use this title and these files from now on; certificates are read anew."""
        self._ae_title = ae_title
        self._tls = tls
        self._contexts.clear()

    def find(self, title: str) -> RemoteEntity | None:
        """The AE of that title as an entity to call, None when none is known or it has no address.

        Raises TlsError when the files that calling it needs cannot be used.
        """
        ae = self._known().get(title.strip())
        return None if ae is None or not ae.host else self.entity(ae)

    def find_for_commitment(self, title: str) -> RemoteEntity | None:
        """Whom to tell the results of that AE's storage commitment; else as :meth:`find`."""
        ae = self._known().get(title.strip())
        return self.find(ae.commitment_to or title if ae is not None else title)

    def entity(self, ae: RemoteAe) -> RemoteEntity:
        """How ``ae`` is called. Raises TlsError when the files that it needs cannot be used."""
        return RemoteEntity(
            ae.host,
            ae.port,
            called_ae=ae.called_title or ae.title,
            calling_ae=ae.calling_title or self._ae_title,
            tls=self._context(ae) if ae.tls else None,
            associations=ae.move_associations,
        )

    def _context(self, ae: RemoteAe) -> ssl.SSLContext:
        own = bool(ae.tls_certificate)
        certificate, key = (ae.tls_certificate, ae.tls_key) if own else (self._tls.certificate, self._tls.key)
        ca, crl = (ae.tls_ca, ae.tls_crl) if ae.tls_ca else (self._tls.ca, self._tls.crl)
        wanted = (certificate, key, ca, crl, ae.certificates)
        context = self._contexts.get(wanted)
        if context is None:
            context = client_context(
                ca=_path(ca),
                crl=_path(crl),
                certificate=_path(certificate),
                key=_path(key),
                bindings=ae.certificates,
            )
            self._contexts[wanted] = context
        return context


def _path(text: str) -> Path | None:
    return Path(text) if text else None
