"""The way back of volumes that are on it: everything into its place, recorded, and tidied up.

All of it is done from what :mod:`ipavolume.apply.rollback` has staged.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ipavolume.apply import attempts, commit, journal, programs, refused, snapshot
from ipavolume.apply.area import Area, open_inside, sync_area
from ipavolume.apply.latecomers import Latecomers, acls_of, is_opened
from ipavolume.apply.notes import Notes
from ipavolume.apply.recognition import Recognition
from ipavolume.apply.run import Finish, without
from ipavolume.apply.swap import Swap
from ipavolume.apply.undo import BROUGHT_BACK, KEPT, SWAPPED, TIME, TIMES, Undo, read_undo
from ipavolume.context import Context
from ipavolume.errors import IpaVolumeError, UnsafeVolumeError, told_as, unforeseen
from ipavolume.formats import manifest
from ipavolume.formats.manifest import is_safe_path
from ipavolume.linux import clock, files, trees
from ipavolume.model.actions import ROLLBACK, Install
from ipavolume.model.files import STATE_DIRECTORY, Xattrs
from ipavolume.model.images import ImageHeader, named
from ipavolume.model.packed import counts_of
from ipavolume.model.paths import mount_of
from ipavolume.volume import failures, history, layout, members, snapshots
from ipavolume.volume.facts import read_identity
from ipavolume.volume.failures import STATE_GOING_BACK, STATE_OPEN, attempt
from ipavolume.volume.index import (
    INDEX_ENTRY,
    INDEX_UNKNOWN,
    dump_index,
    index_entry,
    pack_entry,
    read_index_of,
)
from ipavolume.volume.logs import Speaker
from ipavolume.volume.refused import UNDONE, UNVERIFIED
from ipavolume.volume.snapshots import is_before, open_content, read_originals, run_number
from ipavolume.volume.tree import Tree
from ipavolume.volume.volumes import Volumes


def finish(
    context: Context,
    outer: Mapping[str, Area],
    speaker: Speaker,
    uuid: str,
    *,
    emptied: Collection[str] = (),
    undone: ImageHeader | None = None,
) -> Finish:
    """Put everything in place, and record it.

    Args:
        context: The volumes.
        outer: Their areas, the primary one first.
        speaker: Where it says what it does.
        uuid: That of the primary volume.
        emptied: Mounts of volumes that were emptied since it began; they are left as they are.
        undone: Where it is gone on with, the image whose run is undone.

    Raises:
        IpaVolumeError: If it cannot be finished; the volumes are on the way back still.
    """
    inner: dict[str, Area] = {}
    try:
        for mount, area in outer.items():
            with attempt("open", area.volume.directory, now=STATE_OPEN):
                inner[mount] = open_inside(area, layout.ROLLBACK)
        way = _WayBack(context, outer, inner, speaker, uuid, emptied, undone)
        with told_as(unforeseen):
            return way.finish()
    except IpaVolumeError as err:
        # Swap and commit, which every run has, say that an upgrade is open.
        if err.state in ("", STATE_OPEN):
            err.state = STATE_GOING_BACK
        raise
    finally:
        for area in inner.values():
            area.close()


class _WayBack:
    """Volumes that are on the way back."""

    def __init__(
        self,
        context: Context,
        outer: Mapping[str, Area],
        inner: Mapping[str, Area],
        speaker: Speaker,
        uuid: str,
        emptied: Collection[str],
        undone: ImageHeader | None,
    ) -> None:
        self._context = context
        self._uuid = uuid
        self._undone = undone
        self._volumes = context.volumes
        self._outer = outer
        self._inner = inner
        self._first = next(iter(inner.values()))
        self._speaker = speaker
        self._record = read_undo(self._first)
        self._plan = commit.read_plan(self._first, self._volumes)
        self._notes = Notes(self._first, self._volumes)
        if emptied:
            self._plan = without(self._plan, emptied, self._volumes)
            with attempt("write to", self._first.volume.directory, now=STATE_OPEN):
                self._notes.keep(lambda path: mount_of(path, self._volumes) not in emptied)

    def finish(self) -> Finish:
        self._swap()
        notes = self._notes.copies
        self._commit()
        _prune(self._volumes, self._record, self._uuid, self._speaker)
        return Finish(plan=self._plan, notes=notes)

    def _swap(self) -> None:
        if files.lstat(self._first.work, SWAPPED) is not None:
            return
        installed: dict[str, bytes] = {}

        def note(path: str, st: os.stat_result) -> None:
            installed[path] = index_entry(st)

        latecomers = self._latecomers()
        swap = Swap(
            self._plan,
            self._inner,
            self._notes,
            known=Recognition(
                self._plan,
                renumbered=(dict(self._record.users), dict(self._record.groups)),
                is_gone_back_to=self._is_content,
            ),
            installed=note,
            check_lock=self._volumes.check_lock,
            latecomers=latecomers,
        )
        swap.run(self._speaker.say)
        if latecomers is not None:
            self._settle_latecomers(latecomers)
        self._settle_times()
        with attempt("write to", self._first.volume.directory, now=STATE_OPEN):
            self._settle_index(installed)
        for area in self._inner.values():
            sync_area(area.volume, now=STATE_OPEN)
        with attempt("write to", self._first.volume.directory, now=STATE_OPEN):
            files.write_file(self._first.work, SWAPPED, b"")

    def _latecomers(self) -> Latecomers | None:
        """Return what looks for what came while the way back waited; ``None``: it did not wait."""
        if self._undone is None or not (self._record.users or self._record.groups):
            return None
        kept = files.open_at(self._first.work, KEPT, files.DIRECTORY_FLAGS)
        try:
            stream = members.open_member(kept, layout.BASELINE)
            if stream is None:
                return None
            with stream:
                then = manifest.read_header(stream).accounts
        finally:
            os.close(kept)
        return Latecomers(self._plan, self._undone.accounts, then)

    def _settle_latecomers(self, latecomers: Latecomers) -> None:
        contents = {}
        with contextlib.ExitStack() as stack:
            for mount in self._inner:
                # What comes back was staged; whoever removed the snapshot is in nobody's way.
                with contextlib.suppress(UnsafeVolumeError):
                    contents[mount] = open_content(self._volumes[mount], self._record.snapshot)
                    stack.callback(os.close, contents[mount])
            tree = stack.enter_context(Tree(contents))

            def is_as_it_was(
                path: str, now: os.stat_result, xattrs: Xattrs, content: Callable[[], str]
            ) -> bool:
                if path.startswith(f"{mount_of(path, self._inner)}/{STATE_DIRECTORY}/"):
                    return True
                st = tree.stat(path) if tree.covers(path) else None
                # Whoever had the number makes no program of its account's, and opens nothing.
                return (
                    st is not None
                    and (st.st_uid, st.st_gid) == (now.st_uid, now.st_gid)
                    and not is_opened(now, stat.S_IMODE(st.st_mode))
                    and acls_of(xattrs) == acls_of(tree.xattrs(path))
                    and (not programs.set_id_bits(now) or content() == tree.digest(path))
                )

            unclear = latecomers.find(
                self._inner,
                self._notes.copies,
                mounted=self._volumes.mounted_below(),
                progress=self._speaker.say,
                check_lock=self._volumes.check_lock,
                is_known=is_as_it_was,
            )
        for text in unclear:
            self._speaker.say(f"warning: {text}")
        with attempt("write to", self._first.volume.directory, now=STATE_OPEN):
            journal.write_warnings(self._first.work, unclear)

    def _is_content(self, path: str, inode: int) -> bool:
        """Tell whether a file has the content that the snapshot has at *path*."""
        mount = mount_of(path, self._volumes)
        with contextlib.ExitStack() as stack:
            try:
                content = open_content(self._volumes[mount], self._record.snapshot)
            except UnsafeVolumeError:
                # What comes back was staged; whoever removed the snapshot is in nobody's way.
                return False
            stack.callback(os.close, content)
            found = stack.enter_context(files.parent_if_there(content, path[len(mount) + 1 :]))
            then = None if found is None else files.open_regular(*found)
            if then is None:
                return False
            stack.callback(os.close, then)
            now = files.reopen(inode)
            stack.callback(os.close, now)
            return files.have_same_bytes(then, now)

    def _settle_times(self) -> None:
        """Give directories that came back their times, which what was put into them has changed."""
        with attempt("read", self._first.volume.directory, now=STATE_OPEN):
            stream = members.open_member(self._first.work, TIMES)
        # An ipavolume that knew nothing of it may have begun to go back.
        if stream is None:
            return
        with stream, self._volumes.tree() as tree:
            actions = enumerate(self._plan.actions)
            while data := stream.read(TIME.size):
                number, mtime_ns = TIME.unpack(data) if len(data) == TIME.size else (-1, 0)
                action = next((one for position, one in actions if position == number), None)
                if action is None:
                    raise members.damaged(self._first.work, TIMES, "was altered")
                if not isinstance(action, Install):
                    # Its volume was emptied since.
                    continue
                with attempt("change", action.path, now=STATE_OPEN):
                    directory = tree.directory(action.path)
                    if directory is not None:
                        files.set_times(directory, mtime_ns)

    def _settle_index(self, installed: Mapping[str, bytes]) -> None:
        """Leave in the index what was untouched when the snapshot was made, and still is.

        A file that has been brought back is known by what it is now. But only if the index knew it
        then: of an edited file size and time say nothing.
        """
        kept = files.open_at(self._first.work, KEPT, files.DIRECTORY_FLAGS)
        try:
            stream = members.open_member(kept, layout.BASELINE)
            if stream is None or files.lstat(kept, layout.INDEX) is None:
                return
            known = {
                one.path: one
                for one in read_originals(self._volumes.primary, self._record.snapshot)
                if one.path in installed
            }
            with stream, self._volumes.tree() as tree:
                header = manifest.read_header(stream)
                body = bytearray(read_index_of(kept, header))
                for number, line in enumerate(manifest.read_lines(stream)):
                    start = number * INDEX_ENTRY.size
                    entry = bytes(body[start : start + INDEX_ENTRY.size])
                    if len(entry) < INDEX_ENTRY.size or entry == INDEX_UNKNOWN:
                        continue
                    path = manifest.path_of(line)
                    st = tree.stat(path)
                    if st is not None and index_entry(st) == entry:
                        continue
                    new, was = installed.get(path), known.get(path)
                    # Size and time are the first half of an entry.
                    if (
                        new is None
                        or was is None
                        or entry != pack_entry(was.size, was.mtime_ns, was.ctime_ns, was.ino)
                        or new[:16] != entry[:16]
                    ):
                        new = INDEX_UNKNOWN
                    body[start : start + INDEX_ENTRY.size] = new
            files.write_file(kept, layout.INDEX, dump_index(body, header), mode=0o600)
        finally:
            os.close(kept)

    # -- the end -----------------------------------------------------------------------------

    def _commit(self) -> None:
        self._volumes.check_lock()
        build_ids = dict(self._record.build_ids)
        application = self._application()
        for mount in list(self._outer)[1:]:
            with commit.changing_records("commit to", self._outer[mount]):
                self._settle_identity(
                    self._outer[mount],
                    application,
                    was_nobodys=mount in self._record.nobodys,
                )
                self._volumes.check_lock()
                commit.put_build_id(self._inner[mount], build_ids.get(mount, ""))
                commit.close_transaction(self._outer[mount], now=STATE_OPEN)
        primary = next(iter(self._outer.values()))
        with commit.changing_records("commit to", primary):
            runs = history.read_history(self._volumes.primary)
            history.append_history(primary.state, runs, self._entry())
            self._bring_back_state(primary)
            self._settle_identity(primary, application)
            self._judge_images()
            files.sync(primary.state)
            self._volumes.check_lock()
            commit.put_build_id(self._first, build_ids.get(self._first.volume.mount, ""))
            commit.close_transaction(primary, now=failures.STATE_CLOSED)
        attempts.forget(self._context)

    def _bring_back_state(self, primary: Area) -> None:
        kept = files.open_at(self._first.work, KEPT, files.DIRECTORY_FLAGS)
        try:
            for name in BROUGHT_BACK:
                if name not in self._record.had:
                    files.unlink(primary.state, name)
                elif files.lstat(kept, name) is not None:
                    files.rename(kept, name, primary.state, name)
        finally:
            os.close(kept)

    def _judge_images(self) -> None:
        """Have the image that is gone back from not started again before its time.

        The one that is gone back to may be started, whatever was recorded of it. An image that
        ships the same is told from it by its id alone. And going back may have been asked for
        after everything was run once more for the same image.
        """
        record, fingerprint = self._record, self._plan.fingerprint
        volume = self._volumes.primary
        refused.note_tried(volume, record.to_build, fingerprint, record.run)
        is_same_content = record.fingerprint == fingerprint
        is_known = record.fingerprint and fingerprint
        if not record.image or (
            record.image == record.to_build and (is_same_content or not is_known)
        ):
            return
        known = "" if is_same_content else record.fingerprint
        code, run = UNDONE, record.run if record.was_open else record.snapshot
        if record.is_unverified:
            if refused.is_refused(volume, record.image, known):
                return
            # Who took the volumes from it was stopped right after that.
            code, run = UNVERIFIED, record.snapshot
        refused.note_refused(volume, record.image, known, code, run, record.cause)
        image = named(record.image, {record.image: record.image_name})
        until = refused.until(volume, record.image, known)
        when = f"from {until} on" if until else "by the next start of it"
        self._speaker.say(
            f"the image {image} is refused from now on; it is tried again {when}, "
            f"and at once with IPAVOLUME_RETRY={run}"
        )

    def _application(self) -> str:
        """Return the application whose the volumes were."""
        first = self._first
        with attempt("read from", first.volume.directory, now=STATE_OPEN):
            kept = files.open_at(first.work, KEPT, files.DIRECTORY_FLAGS)
        try:
            # It is in its place already where this is done once more.
            for directory in (kept, first.state):
                stream = members.open_member(directory, layout.BASELINE)
                if stream is not None:
                    with stream:
                        return manifest.read_header(stream).application
        finally:
            os.close(kept)
        return ""

    def _settle_identity(self, area: Area, application: str, *, was_nobodys: bool = False) -> None:
        """Where nothing was ours before, the volume is nobody's again."""
        if was_nobodys or layout.BASELINE not in self._record.had:
            files.unlink(area.state, layout.IDENTITY)
            return
        identity = read_identity(area.state)
        if identity is not None and identity.application != application:
            journal.write_identity(area.state, replace(identity, application=application))

    def _entry(self) -> dict[str, Any]:
        record = self._record
        copies = [[path, to, "saved"] for path, to in self._notes.copies if to]
        return {
            "run": record.run,
            "kind": ROLLBACK,
            "from": record.image,
            "from_name": record.image_name,
            "to": record.to_build,
            "to_name": record.to_name,
            "started": record.started,
            "finished": clock.now(),
            "holder": record.holder,
            "result": "undone",
            "counts": dict(sorted(counts_of(self._plan.actions).items())),
            "packages": [],
            "overrides": list(record.overrides),
            "copies": copies,
            "kept": [],
            "tasks": [],
            "warnings": [*record.warnings, *journal.read_warnings(self._first.work)],
            "failures": [list(one) for one in record.failures],
            "undone": {
                "snapshot": record.snapshot,
                "automatic": record.is_automatic,
                "cause": record.cause,
                "bytes": sum(_size_of(one, record.run) for one in self._volumes.values()),
                "settled": self._settled(),
                "changed": [list(one) for one in record.changed],
            },
        }

    def _settled(self) -> list[str]:
        """Return the copies of what is undone whose files are again what they are copies of."""
        since = run_number(self._record.snapshot)
        below = tuple(mount + "/" for mount in self._volumes)
        found = []
        with self._volumes.tree() as tree:
            for run in history.read_history(self._volumes.primary):
                if is_before(run_number(run["run"]), since):
                    continue
                for path, copy, _ in run.get("copies", ()):
                    # What cannot be compared is left to be looked at.
                    with contextlib.suppress(IpaVolumeError, OSError):
                        if all(is_safe_path(one) and one.startswith(below) for one in (path, copy)):
                            found += [copy] * _are_alike(tree, path, copy)
        return found


def _are_alike(tree: Tree, path: str, copy: str) -> bool:
    """Tell whether two files, or two links, are there and have the same content."""
    here, there = tree.stat(path), tree.stat(copy)
    if here is None or there is None or here.st_size != there.st_size:
        return False
    if stat.S_ISLNK(here.st_mode) and stat.S_ISLNK(there.st_mode):
        return tree.target(path) == tree.target(copy)
    digest = tree.digest(path)
    return digest != "" and digest == tree.digest(copy)


def _size_of(volume: members.Volume, run: str) -> int:
    """Return what a rollback has put aside on *volume*, in bytes on the disk."""
    try:
        fd = files.open_directory(volume.fd, f"{STATE_DIRECTORY}/{layout.UNDONE}/{run}")
    except FileNotFoundError:
        return 0
    try:
        return sum(visit.st.st_blocks * 512 for visit in trees.walk(fd) if not visit.leaving)
    finally:
        os.close(fd)


def _prune(volumes: Volumes, record: Undo, uuid: str, speaker: Speaker) -> None:
    """Drop what is not needed any more.

    That is the snapshot of what was never completed, and what earlier rollbacks that nobody asked
    for have put aside. What of it cannot be removed is left to the next one. Where nothing was ours
    before, the volume has no *uuid* any more, by which its snapshot is known.
    """
    if record.was_open:
        with contextlib.suppress(IpaVolumeError, OSError):
            if snapshots.may_be_anothers(volumes, record.snapshot, uuid):
                speaker.say(
                    f"what is in {STATE_DIRECTORY}/{layout.SNAPSHOTS} of run {record.snapshot} may "
                    "be of another volume, and stays; if it is not: ipavolume snapshot drop "
                    f"{record.snapshot}"
                )
            else:
                snapshot.remove(volumes, record.snapshot)
    if not record.is_automatic:
        return
    others = [
        run["run"]
        for run in history.read_history(volumes.primary)
        if run["run"] != record.run and run.get("undone", {}).get("automatic")
    ]
    for volume in volumes.values():
        with contextlib.suppress(OSError):
            _drop(volume, others)


def _drop(volume: members.Volume, runs: Sequence[str]) -> None:
    try:
        fd = files.open_directory(volume.fd, f"{STATE_DIRECTORY}/{layout.UNDONE}")
    except FileNotFoundError:
        return
    try:
        for name in files.listdir(fd):
            if name.partition(".")[0] in runs:
                trees.remove_tree(fd, name)
    finally:
        os.close(fd)
