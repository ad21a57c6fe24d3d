"""What each command does with volumes in a state: one table, from which nothing is left out."""

from __future__ import annotations

import enum

from ipavolume.model.values import dataclass
from ipavolume.plan.verdict import State
from ipavolume.steps.api import When


class Does(enum.Enum):
    """What a start does with volumes in a state that nothing overrides."""

    NOTHING = "nothing"
    PLAN = "plan, and carry that out"
    RESUME = "go on with the open run"
    GO_BACK = "go back to what was before the open run"
    FIRST_RUN = "run the first run"
    REFUSE = "refuse"


class Kind(enum.StrEnum):
    """Kinds of runs, by the words of plan and history."""

    POPULATE = "populate"
    ADOPT = "adopt"
    UPGRADE = "upgrade"
    REBUILT = "rebuilt"
    REFILL = "refill"
    """Of the same image: an empty further volume is filled, and nothing else is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conduct:
    """What is done with volumes in a state.

    Attributes:
        does: What a start does.
        kind: Kind of the run that is planned, where it is; with an override a refused state
            is one of these.
        asks: Which steps the next start asks.
        is_known: What the volumes record names every package of the last image; otherwise it
            was learned from what the application says of itself.
    """

    does: Does
    kind: Kind = Kind.UPGRADE
    asks: When = When.UPGRADE
    is_known: bool = True

    @property
    def replaces_files(self) -> bool:
        """A run of this kind may replace files under an application that was installed."""
        match self.kind:
            case Kind.UPGRADE | Kind.ADOPT:
                return True
            case Kind.POPULATE | Kind.REBUILT | Kind.REFILL:
                return False


def conduct(state: State) -> Conduct:
    """Return what is done with volumes in *state*."""
    match state:
        case State.CURRENT:
            return Conduct(does=Does.NOTHING, asks=When.START)
        case State.EMPTY:
            return Conduct(does=Does.PLAN, kind=Kind.POPULATE, asks=When.POPULATE)
        case State.OUTDATED:
            return Conduct(does=Does.PLAN)
        case State.REBUILT:
            return Conduct(does=Does.PLAN, kind=Kind.REBUILT, asks=When.START)
        case State.LEGACY:
            return Conduct(does=Does.PLAN, kind=Kind.ADOPT, is_known=False)
        case State.STATELESS:
            return Conduct(does=Does.REFUSE, kind=Kind.ADOPT, is_known=False)
        case State.UPGRADING | State.TAKEN_OVER:
            return Conduct(does=Does.RESUME)
        case State.GOING_BACK:
            return Conduct(does=Does.GO_BACK)
        case State.UNCONFIGURED:
            return Conduct(does=Does.FIRST_RUN, asks=When.START)
        case State.WAITING | State.PARTIAL:
            return Conduct(does=Does.REFUSE, asks=When.START)
        case (
            State.UNSAFE
            | State.OBSTRUCTED
            | State.FOREIGN
            | State.BLOCKED
            | State.NEWER
            | State.INCOMPATIBLE
            | State.OCCUPIED
        ):
            return Conduct(does=Does.REFUSE)
