"""The table of :mod:`~hounsfield.archive.wire.states` at work: where one association is, and what follows."""

from __future__ import annotations

from hounsfield.archive.wire.errors import LocalProtocolError
from hounsfield.archive.wire.states import EFFECTS, TRANSITIONS, Effect, State, Trigger


class Machine:
    """One association's state. Nothing else moves it."""

    __slots__ = ("artim_running", "artim_starts", "deaf", "should_close", "state")

    def __init__(self) -> None:
        self.state = State.IDLE
        self.artim_running = False
        self.artim_starts = 0
        self.should_close = False
        self.deaf = False
        """Whatever still arrives is ignored."""

    def permits(self, trigger: Trigger) -> bool:
        return (trigger, self.state) in TRANSITIONS

    def effect(self, trigger: Trigger) -> Effect:
        """What the table says; ``LocalProtocolError`` when it says nothing."""
        effect = EFFECTS.get((trigger, self.state))
        if effect is None:
            raise LocalProtocolError(
                f"{trigger.name} is not permitted in Sta{self.state.value} ({self.state.name})"
            )
        return effect

    def fire(self, trigger: Trigger, *, otherwise: bool = False) -> Effect:
        """Do what the table says."""
        return self.apply(self.effect(trigger), otherwise=otherwise)

    def apply(self, effect: Effect, *, otherwise: bool = False) -> Effect:
        """The only place where the state changes. ``otherwise``: the second branch of an action with two."""
        artim = effect.artim
        if otherwise and effect.otherwise is not None:
            self.state = effect.otherwise
            artim = effect.otherwise_artim
        else:
            self.state = effect.next
        if artim is not None:
            self.artim_running = artim == "start"
            self.artim_starts += self.artim_running
        if effect.close:
            self.should_close = self.deaf = True
            self.artim_running = False
        return effect
