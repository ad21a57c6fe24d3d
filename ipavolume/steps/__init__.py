"""Upgrade steps. What a step imports is here; it is written in :mod:`ipavolume.steps.api`."""

from ipavolume.model.tasks import Phase
from ipavolume.steps.api import (
    DEFAULT_TIMEOUT_S,
    Command,
    Declaration,
    GoingBackFunction,
    MakeLink,
    PlanFunction,
    Refuse,
    Remove,
    RollbackView,
    Step,
    StepAction,
    VerifyFunction,
    View,
    Warn,
    When,
    Write,
    describe,
)

__all__ = [
    "DEFAULT_TIMEOUT_S",
    "Command",
    "Declaration",
    "GoingBackFunction",
    "MakeLink",
    "Phase",
    "PlanFunction",
    "Refuse",
    "Remove",
    "RollbackView",
    "Step",
    "StepAction",
    "VerifyFunction",
    "View",
    "Warn",
    "When",
    "Write",
    "describe",
]
