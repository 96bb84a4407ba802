"""What the commands that talk to another AE share: patience, interruptions, errors as exit codes."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

from hounsfield.archive.cli.output import EXIT_UNREACHABLE, Failed, remark
from hounsfield.archive.errors import alone

if TYPE_CHECKING:
    from hounsfield.archive.net.scu import ScuLimits

Result = TypeVar("Result")


def limits_for(timeout: float) -> ScuLimits:
    """``--timeout`` as limits: for a connection not more than is usual."""
    from hounsfield.archive.net.scu import ScuLimits

    usual = ScuLimits()
    return ScuLimits(
        connect_s=min(timeout, usual.connect_s), associate_s=timeout, response_s=timeout, write_s=timeout
    )


def converse(conversation: Callable[[], Awaitable[Result]]) -> Result:
    """Run it; what it returns. Nobody there, or no answer, is Failed with its own exit code."""
    import trio

    from hounsfield.archive.net.errors import ConnectError, TimedOutError

    try:
        return trio.run(conversation)
    except BaseException as error:
        only = alone(error)
        if isinstance(only, ConnectError | TimedOutError):
            raise Failed(str(only), EXIT_UNREACHABLE) from error
        if only is error:
            raise
        raise only from None


class Interrupts:
    """Whether somebody pressed Ctrl-C."""

    asked = False


@asynccontextmanager
async def heeding_interrupts(cancel: Callable[[], Awaitable[None]]) -> AsyncIterator[Interrupts]:
    """The first Ctrl-C does ``cancel``, which asks the peer to end; the second one ends it here and now."""
    import trio

    interrupts = Interrupts()

    async def watch() -> None:
        with trio.open_signal_receiver(signal.SIGINT) as signals:
            started.set()
            async for _ in signals:
                if interrupts.asked:
                    raise KeyboardInterrupt
                interrupts.asked = True
                remark("cancelling; Ctrl-C again ends it at once")
                await cancel()

    started = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await started.wait()
        yield interrupts
        nursery.cancel_scope.cancel()
