"""HL7 v2 over MLLP: what other systems say becomes actions, and what happens here is told to them.

In: ``mllp`` frames, ``messages`` and ``encoding`` parse, ``mapping`` puts right what a sender says otherwise,
``adt``, ``ordering`` and ``appointing`` say what is meant, ``receiving`` does it in one transaction and
answers with ``acks``. Out: ``telling`` makes messages of what happened with ``writing``, ``sending`` delivers
them. ``desk`` is what people do about both, ``keeping`` what the leader does by itself.
See docs/decisions/0029-hl7-events.md for what comes late.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog
import trio

from hounsfield.archive.plugins import Parts, StreamPeer
from hounsfield.ris_plugin.context import Ris
from hounsfield.ris_plugin.following import leading
from hounsfield.ris_plugin.hl7.desk import operations
from hounsfield.ris_plugin.hl7.keeping import keep
from hounsfield.ris_plugin.hl7.mapping import load
from hounsfield.ris_plugin.hl7.mllp import Limits, serve
from hounsfield.ris_plugin.hl7.receiving import Receiver
from hounsfield.ris_plugin.hl7.sending import Sender
from hounsfield.ris_plugin.hl7.telling import consumer
from hounsfield.ris_plugin.records.messages import DEAD, LETTER, MESSAGE, WAITING

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

__all__ = ["parts"]

log = structlog.get_logger(__name__)

COUNTED_MAX: Final = 10_000
"""Of what waits; more is too many in any case."""


def parts(ris: Ris) -> Parts:
    """Listeners, the senders to each destination, the consumer that makes messages, operations, figures.

    Raises ConfigError for a mapping that cannot be read.
    """
    receivers = {one.name: Receiver(ris, one, load(one.mapping)) for one in ris.settings.hl7_listeners}
    limits = Limits(message_bytes_max=ris.settings.hl7_message_bytes_max)
    led: dict[str, Callable[[], Awaitable[None]]] = {"hl7 keeping": partial(keep, ris, receivers)}
    if ris.settings.hl7_destinations:
        led |= leading(ris, consumer(ris))
    for to in ris.settings.hl7_destinations:
        led[f"hl7 to {to.name}"] = Sender(ris, to).run
    return Parts(
        streams={name: partial(_serve, receiver, limits) for name, receiver in receivers.items()},
        leading=led,
        operations=operations(ris, receivers),
        metrics=partial(_metrics, ris),
    )


async def _serve(receiver: Receiver, limits: Limits, stream: trio.abc.Stream, peer: StreamPeer) -> None:
    if why := await serve(stream, receiver.answer, limits):
        log.warning("an HL7 connection was ended", listener=receiver.name, address=peer.address, reason=why)


def _metrics(ris: Ris) -> Iterable[Metric]:
    from prometheus_client.metrics_core import GaugeMetricFamily

    letters = GaugeMetricFamily(
        "hounsfield_ris_hl7_letters", "Messages not applied, by state", labels=["state"]
    )
    queued = GaugeMetricFamily(
        "hounsfield_ris_hl7_queued",
        "Messages not taken by their destination",
        labels=["destination", "state"],
    )
    oldest = GaugeMetricFamily(
        "hounsfield_ris_hl7_oldest_seconds", "Age of the first that waits", labels=["destination"]
    )
    with ris.reading() as view:
        for state in ("open", "waiting"):
            letters.add_metric([state], len(view.ids(LETTER, "state", state, limit=COUNTED_MAX)))
        for to in ris.settings.hl7_destinations:
            for state in (WAITING, DEAD):
                queued.add_metric([to.name, state], len(view.ids(MESSAGE, state, to.name, limit=COUNTED_MAX)))
            first = view.first(MESSAGE, WAITING, to.name)
            age = (ris.now_ns() - first[1].made_ns) / 1e9 if first is not None else 0.0
            oldest.add_metric([to.name], max(0.0, age))
    return [letters, queued, oldest]
