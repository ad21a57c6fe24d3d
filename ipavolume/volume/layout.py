"""Names and modes of what is in the state directory."""

from __future__ import annotations

from typing import Final

BASELINE: Final = "baseline.jsonl"
INDEX: Final = "index"
IDENTITY: Final = "identity.json"
HISTORY: Final = "history.jsonl"
FIRST_RUN: Final = "first-run.json"
REFILL: Final = "refill"
"""In the transaction of a volume that was emptied amid the run and is filled by it."""
PRISTINE: Final = "pristine"
SAVED: Final = "saved"
STAGING: Final = "staging"
TRANSACTION: Final = "transaction"
TRASH: Final = "trash"
PROGRESS: Final = "progress.json"
PLAN: Final = "plan.jsonl"
TASKS: Final = "tasks.json"
NOTES: Final = "notes.jsonl"
WARNINGS: Final = "warnings.json"
"""In the transaction: what is to be told of its plan."""
LATECOMERS: Final = "latecomers.json"
HELD: Final = "held"
PENDING: Final = "pending.jsonl"
LOGS: Final = "logs"
LOCK: Final = "lock"
VERIFIED: Final = "verified.json"
RUNNING: Final = "running.json"
ATTEMPTS: Final = "attempts.json"
REFUSED: Final = "refused.jsonl"
SNAPSHOTS: Final = "snapshots"
SNAPSHOTS_MOUNTED: Final = "snapshots-mounted"
UNDONE: Final = "undone"
REHEARSAL: Final = "rehearsal.json"
INODE: Final = "inode"
"""In a work area: the number that the area's directory had when it was made."""
ROLLBACK: Final = "rollback"


PRIVATE_MODE: Final = 0o700
PUBLIC_MODE: Final = 0o755


PRIVATE_FILE_MODE: Final = 0o600
PUBLIC_FILE_MODE: Final = 0o644
