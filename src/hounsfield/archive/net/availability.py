"""Instance Availability Notification as its user: N-CREATE to AEs that want to hear of studies (PS3.4 R)."""

from __future__ import annotations

import uuid
from collections.abc import Mapping

from hounsfield.archive.dicom.availability import INSTANCE_AVAILABILITY_NOTIFICATION, notification
from hounsfield.archive.engine.availability import Availability, News
from hounsfield.archive.engine.leadership import Leadership
from hounsfield.archive.net.calling_back import CallingBack, CallingBackLimits, DeclinedError
from hounsfield.archive.net.destinations import Destinations
from hounsfield.archive.net.scu import RequestorAssociation, ScuLimits
from hounsfield.archive.wire import (
    Category,
    NCreateRequest,
    NCreateResponse,
    PresentationContext,
    describe_status,
)
from hounsfield.codecs.registry import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, lookup

__all__ = ["AvailabilityNotices"]

_CONTEXT = PresentationContext(
    1, INSTANCE_AVAILABILITY_NOTIFICATION, (EXPLICIT_VR_LITTLE_ENDIAN.uid, IMPLICIT_VR_LITTLE_ENDIAN.uid)
)


class AvailabilityNotices:
    """Tells AEs what is owed to them; ``run`` in each worker, the lease lets one of them call."""

    def __init__(
        self,
        availability: Availability,
        destinations: Destinations,
        leadership: Leadership,
        *,
        ae_title: str,
        limits: CallingBackLimits | None = None,
        scu_limits: ScuLimits | None = None,
    ) -> None:
        """``ae_title``: from whom what is available can be retrieved."""
        self._availability = availability
        self._ae_title = ae_title
        self._calling_back = CallingBack(
            "availability notifications",
            owed=availability.owed,
            settle=availability.settle,
            contexts=[_CONTEXT],
            tell=self._tell,
            scu_limits=scu_limits,
            find=destinations.find,
            leadership=leadership,
            limits=limits or CallingBackLimits(),
        )
        self.run = self._calling_back.run
        self.told = 0

    def figures(self) -> Mapping[str, int]:
        """For the metrics."""
        return {
            "availability_notifications_total": self.told,
            "availability_given_up_total": self._calling_back.given_up,
        }

    async def _tell(self, association: RequestorAssociation, news: News) -> None:
        study = await self._availability.study(news.study_uid)
        if study is not None:
            context = association.context_for(INSTANCE_AVAILABILITY_NOTIFICATION)
            request = NCreateRequest(
                association.next_message_id(),
                INSTANCE_AVAILABILITY_NOTIFICATION,
                f"2.25.{uuid.uuid4().int}",  # PS3.5 B.2
                True,
            )
            data = notification(study, lookup(context.transfer_syntax), retrieve_ae=self._ae_title)
            response, _ = await association.ask(context, request, data)
            assert isinstance(response, NCreateResponse)
            meaning = describe_status(response.status)
            if meaning.category is Category.FAILURE:
                raise DeclinedError(f"a notification was refused: {response.status:04X}H, {meaning.meaning}")
            self.told += 1
        await self._availability.settle(news)
