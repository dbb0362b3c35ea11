"""The invariants I1-I9, checked on the true state of the disk at every change.

The disk passes each change to `InvariantChecker`, which knows the process that made it and keeps
account of where every claim and lease is, so that a check costs the same however large the pool. It
raises a `Violation` that names the invariant.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from fsqueue.pool.names import ClaimName, LeaseName
from tests.sim.disk import Inode
from tests.sim.world import Process, Table, Violation, World

OWNED: Final = ("running", "done", "failed")
STEPS: Final = {
    ("staged", "spools"): "publish",
    ("spools", "running"): "take",
    ("running", "done"): "finish",
    ("running", "failed"): "fail",
    ("spools", "failed"): "cancel",
    ("failed", "spools"): "retry",
}
JOURNAL_EVENTS: Final = {"stole": "steal", "lost": "zombie refused", "adopted": "adopt"}
_PLAN: Final = re.compile(r"[0-9]{6,}\.json")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a claim's file is: waiting in a spool, staged by a plan, or in an owned state."""

    area: str
    where: str
    name: ClaimName
    text: str


@dataclass(slots=True)
class Known:
    """What is known about one claim."""

    places: list[Place] = field(default_factory=list)
    plan: str = ""
    since: float = 0.0
    """When it came to its present place."""
    held_s: float = 0.0
    """How long it had been in the place before."""
    waited: set[str] = field(default_factory=set)
    """Every name under which it ever waited."""
    content: bytes = b""

    def copy(self) -> Known:
        """Return an independent copy."""
        places, waited = self.places.copy(), self.waited.copy()
        return Known(places, self.plan, self.since, self.held_s, waited, self.content)


class InvariantChecker:
    """Checks everything that happens below one pool's root."""

    def __init__(self, world: World, root: str, output: Callable[[str], bytes]) -> None:
        self.world = world
        self.root = root
        self.output = output
        self.watched = isinstance(world, World)
        """Whether time passes and processes get on by themselves."""
        self.lease_s = 30.0
        self.attempts_max = 3
        self.claims: dict[str, Known] = {}
        self.leases: dict[str, tuple[LeaseName, float]] = {}
        """Every worker's lease, and since when it has that name."""
        self.plans: dict[str, str] = {}
        self.purged: dict[str, float] = {}
        """Claims whose files something else removed, and when."""
        self.repaired: set[str] = set()
        """Those of them that a repair planned again."""
        self.published: dict[str, Process | None] = {}
        """Which process published each output."""
        self.shown: dict[int, str] = {}
        """Public files, by the numbers of their inodes."""
        self.workers: dict[str, Process] = {}
        self.excuses: dict[str, frozenset[str]] = {}
        """For explorations: the excuses of each process in this state."""
        self.count: Counter[str] = Counter()
        """How often each thing was done."""
        world.disk.watch = self.changed

    def copy(self) -> InvariantChecker:
        """Return an independent copy."""
        new: InvariantChecker = object.__new__(InvariantChecker)
        new.__dict__.update(self.__dict__)
        new.claims = {id: known.copy() for id, known in self.claims.items()}
        new.leases, new.plans = dict(self.leases), dict(self.plans)
        new.published = dict(self.published)
        new.shown, new.excuses = dict(self.shown), dict(self.excuses)
        return new

    # ---- what happened ----

    def changed(self, what: str, source: str, target: str, inode: Inode) -> None:
        """Check one change."""
        base = len(self.root) + 1
        if what == "write":
            return self._written(source[base:], inode)
        old = source[base:].split("/") if source else []
        new = target[base:].split("/") if target else []
        before = self._place(old) if what in ("rename", "unlink", "replace") else None
        after = self._place(new)
        if new and new[0] == "plans" and len(new) == 2 and _PLAN.fullmatch(new[-1]):
            self._planned(what, new[-1], inode)
        elif what == "replace":
            self._replaced(source, target, after)
        elif before is not None or after is not None:
            self._claim(what, before, after, inode)
        elif (new or old)[0] == "workers":
            names = old[-1] if old else "", new[-1] if new else ""
            self._lease(what, *names, in_ended=new[1:2] == ["ended"])
        elif (new or old)[0] == "outputs" and len(new or old) == 2:
            self._output(what, old, new, inode)
        elif what == "unlink" and not self._private(old):
            self._unlinked(source, old)
        if what in ("link", "rename") and not self._private(new):
            self.shown[inode.number] = target

    def violate(self, invariant: str, text: str) -> None:
        """Raise a Violation. The world keeps the first, in case the code swallows it."""
        error = Violation(f"{invariant}: {text}")
        self.world.violation = self.world.violation or error
        raise error

    def _replaced(self, source: str, target: str, place: Place | None) -> None:
        area = target[len(self.root) + 1 :].split("/")[0]
        if area not in ("status", "events"):
            self.violate("I4" if place else "I7", f"{source} was renamed over {target}")

    def _written(self, path: str, inode: Inode) -> None:
        if path.startswith("checksums/"):
            return self._recorded(json.loads(inode.data.splitlines()[-1])["output"])
        if path.startswith("events/"):
            return self._check_journal_entry(json.loads(inode.data.splitlines()[-1]))
        if (text := self.shown.get(inode.number)) is not None:
            self.violate("I4", f"{text} was written to after it was visible")

    def _recorded(self, output: str) -> None:
        """Check that a checksum is recorded by the process that published the output (R32)."""
        publisher = self.published.get(output)
        if publisher is not None and publisher is not self._mover():
            self.violate("R32", f"{self._mover()} recorded {output}, which {publisher} published")
        if publisher is None and self.world.disk.find(f"{self.root}/outputs/{output}") is None:
            self.violate("R32", f"{self._mover()} recorded {output}, which is not published")

    def _unlinked(self, path: str, parts: list[str]) -> None:
        if parts[0] in ("plans", "errors", "spools") or len(parts) == 1:
            self.violate("I4", f"{path} was removed")

    @staticmethod
    def _private(parts: list[str]) -> bool:
        return parts[-1].startswith(".") or any(part.endswith(".staged") for part in parts)

    # ---- claims ----

    def purge(self, place: Place) -> None:
        """Remove a waiting claim's file, as something that is no part of fsqueue does."""
        disk, id = self.world.disk, place.name.id
        watch, disk.watch = disk.watch, lambda *_: None
        disk.unlink(f"{self.root}/{place.text}")
        disk.watch = watch
        self.claims[id].places = [p for p in self.claims[id].places if p.text != place.text]
        self.purged[id] = self.world.now

    def _place(self, parts: list[str]) -> Place | None:
        if len(parts) == 2 and parts[0] in OWNED:
            area, where = parts
        elif len(parts) == 3 and parts[0] == "spools":
            area, where = "spools", parts[1]
        elif len(parts) == 4 and parts[1].endswith(".staged"):
            area, where = "staged", parts[1].removesuffix(".staged")
        else:
            return None
        name = ClaimName.parse(parts[-1])
        if name is None:
            if not parts[-1].startswith("."):
                self.violate("I1", f"{'/'.join(parts)} is no claim's name")
            return None
        return Place(area, where if area != parts[0] or area == "spools" else "", name,
                     "/".join(parts))  # fmt: skip

    def _claim(self, what: str, old: Place | None, new: Place | None, inode: Inode) -> None:
        place = new or old
        assert place is not None
        known = self.claims.setdefault(place.name.id, Known())
        if old is not None:
            known.places = [p for p in known.places if p.text != old.text]
        if new is not None:
            known.places.append(new)
            known.held_s, known.since = self.world.now - known.since, self.world.now
        if what == "rename" and old is not None and new is not None:
            self._moved(known, old, new, inode)
        elif what == "link" and place.area == "spools" and place.name.id in self.purged:
            self._planned_again(known, place, inode)
        elif place.area != "staged":
            self.violate("I2", f"{place.text}: {what} of a claim's name")
        elif what == "unlink" and known.plan == place.where:
            self.violate("I1", f"{place.text} of a numbered plan was removed")
        self._once(place.name.id, known)

    def _planned_again(self, known: Known, place: Place, inode: Inode) -> None:
        self._whole(place, inode)
        if str(place.name) in known.waited:
            self.violate("I2", f"the waiting name {place.name} is used twice")
        known.waited.add(str(place.name))
        del self.purged[place.name.id]
        self.repaired.add(place.name.id)

    def _once(self, id: str, known: Known) -> None:
        shown = [p for p in known.places if p.area != "staged"]
        if id in self.purged and not shown:
            return
        mine = [p for p in known.places if p.area == "staged" and p.where == known.plan]
        count = len(shown) + len(mine) if known.plan else len(shown) + (1 if not shown else 0)
        if count != 1:
            where = ", ".join(p.text for p in known.places) or "nowhere"
            self.violate("I1", f"{id} is in {count} places: {where}")
        if not known.plan and shown:
            self.violate("I1", f"{shown[0].text} is in no plan")

    def _moved(self, known: Known, old: Place, new: Place, inode: Inode) -> None:
        if old.area == "staged" or new.area in ("spools", "running"):
            self._whole(new, inode)
        step = old.area, new.area
        mine = self._mover() is self.workers.get(old.name.owner or "")
        if step in STEPS:
            self.count[STEPS[step]] += 1
        if step in (("staged", "spools"), ("spools", "running"), ("spools", "failed")):
            same = new.name.owned_by("") == old.name.owned_by("")
            if not same or (step[1] != "spools" and new.name.owner is None):
                self.violate("I2", f"{old.text} became {new.text}")
            taker = self.workers.get(new.name.owner or "")
            if step == ("spools", "running") and self._mover() is not taker:
                self.violate("I3", f"{self._mover()} took {old.text} for {new.name.owner}")
            if step == ("spools", "running") and old.name.vain and taker is not None:
                self._taken_last(old, taker)
        elif old.area == "running":
            self._left_running(known, old, new, mine)
        elif step == ("failed", "spools"):
            rounds = old.name.attempt // self.attempts_max + 1
            fresh = replace(old.name.returned(failed=True), attempt=rounds * self.attempts_max)
            if new.name != fresh:
                self.violate("I2", f"{old.text} became {new.text}")
        else:
            self.violate("I2", f"{old.text} became {new.text}")
        if new.area == "spools":
            if new.text in known.waited or str(new.name) in known.waited:
                self.violate("I2", f"the waiting name {new.name} is used twice")
            known.waited.add(str(new.name))

    def _taken_last(self, old: Place, taker: Process) -> None:
        """Check that a claim that was put back in vain is taken after the others (R4)."""
        traits, looked = self.world.traits, taker.looked.get(f"{self.root}/spools/{old.where}", 0.0)
        if taker.troubles or traits.listings_s or traits.omits or not self.watched:
            return
        if any(other.alive and other is not taker for other in self.workers.values()):
            return  # which may be expected to take them sooner
        for known in self.claims.values():
            for place in known.places if known.plan else ():
                fresh = place.name.attempt == place.name.vain == 0
                if (place.area, place.where) == ("spools", old.where) and fresh:
                    if known.since < looked and place.name.kind != "breaks":
                        self.violate("R4", f"{taker} took {old.text}, and {place.text} waits")

    def _left_running(self, known: Known, old: Place, new: Place, mine: bool) -> None:
        name, owner = old.name, old.name.owner or ""
        if not mine and (lease := self.leases.get(owner)) is not None and lease[0].living:
            self.violate("I3", f"{self._mover()} moved {old.text} while {lease[0]} holds")
        if new.area in ("done", "failed") and new.name != name:
            self.violate("I2", f"{old.text} became {new.text}")
        if new.area == "done":
            if not mine:
                self.violate("I3", f"{self._mover()} finished {old.text}")
            self._has_output(name)
            return
        charged = new.area == "failed" or new.name.attempt > name.attempt
        left = self.leases.get(owner)
        fresh = not (self.world.traits.listings_s or self.world.traits.omits)
        if charged and not mine and fresh and left is not None and left[0].excuses:
            self.violate("R15", f"{old.text} was charged, and {left[0]} had said that it leaves")
        if new.area == "spools":
            vain = not charged and new.name.vain > name.vain
            if new.name != name.returned(failed=charged, vain=vain):
                self.violate("I2", f"{old.text} became {new.text}")
            excused = (lease := self.leases.get(owner)) is not None and lease[0].excuses
            if not charged and not mine and not self._published(name) and not excused:
                self.violate("attempts", f"{old.text} was taken from its owner and is not charged")
            self.count["recover" if not mine else "requeue" if charged else "release"] += 1
            if not charged and mine and (worker := self.workers.get(owner)) is not None:
                worker.released = new.text, self.world.now, known.held_s
        if charged:
            self._charged(name, final=new.area == "failed", mine=mine)

    def _charged(self, name: ClaimName, *, final: bool, mine: bool) -> None:
        path = f"{self.root}/errors/{name.id}.a{name.attempt}.json"
        record = self._json(path)
        if record is None:
            self.violate("history", f"{name} was charged, and {path} is not there")
        if (record["id"], record["attempt"]) != (name.id, name.attempt):
            self.violate("history", f"{name} was charged, and {path} is about {record}")
        cancelled = self.world.disk.find(f"{self.root}/control/cancel@{name.id}") is not None
        worker = self.workers.get(name.owner or "")
        excuses = worker.excuses if worker is not None else set()
        decided = cancelled or f"{name.id}.a{name.attempt} for good" in excuses
        last = (name.attempt + 1) % self.attempts_max == 0
        if final is not last and not (final and decided):
            self.violate("attempts", f"{name} {'failed' if final else 'was requeued'} too early")
        worker = self.workers.get(name.owner or "")
        guilty = excuses & {"dead", f"{name.id}.a{name.attempt}"}  # R1: no fault of the mount
        # What a host that is suspended takes from a claim's time, no worker can tell.
        late = worker is not None and worker.paused and "ran longer than" in record["error"]
        if not (cancelled or guilty or late or self._could_not_know(excuses)):
            self.violate("innocence", f"{name} was charged, and {worker} did nothing wrong: "
                        f"{record['error']}")  # fmt: skip

    def _could_not_know(self, excuses: set[str]) -> bool:
        """Return whether a worker could not know what it held: a reply was lost, and its view was
        stale.
        """
        traits = self.world.traits
        return "lost" in excuses and (traits.entries_s > 0 or traits.listings_s > 0)

    def _whole(self, place: Place, inode: Inode) -> None:
        try:
            whole = inode.data.endswith(b"}\n") and json.loads(inode.data)["id"] == place.name.id
        except (ValueError, KeyError):
            whole = False
        if not whole:
            self.violate("I4", f"{place.text} is not whole: {inode.data[:60]!r}")

    def _has_output(self, name: ClaimName) -> None:
        if not self._published(name):
            self.violate("I6", f"{name} is done, and its output is not there")

    def _published(self, name: ClaimName) -> bool:
        inode = self.world.disk.find(f"{self.root}/outputs/{name.id}.txt")
        return inode is not None and inode.data == self.output(name.id)

    def _check_journal_entry(self, event: dict[str, Any]) -> None:
        """Check what a worker believes about its own claims."""
        worker = self.workers.get(event["worker"])
        self.count[JOURNAL_EVENTS.get(event["event"], "tell")] += 1
        if (
            worker is None
            or "fault" in worker.excuses
            or event["event"] not in ("finished", "lost")
        ):
            return
        places = [p for p in self.claims[event["id"]].places if p.name.owner == event["worker"]]
        mine = [place for place in places if place.area in ("running", "done")]
        if event["event"] == "finished" and not any(place.area == "done" for place in mine):
            self.violate("belief", f"{worker} believes that it finished {event['id']}")
        if event["event"] == "lost" and mine and self.world.traits.listings_s < 0.2:
            self.violate("belief", f"{worker} believes that it lost {mine[0].text}")

    # ---- outputs, plans ----

    def _output(self, what: str, old: list[str], new: list[str], inode: Inode) -> None:
        if old and not old[-1].startswith(".") and what != "link":
            self.violate("I7", f"{what} of the output {'/'.join(old)}")
        if new and not new[-1].startswith("."):
            if what not in ("link", "rename"):
                self.violate("I7", f"{'/'.join(new)} appeared by {what}")
            if inode.data != self.output(new[-1].removesuffix(".txt")):
                self.violate("I7", f"{'/'.join(new)} is not whole: {inode.data[:60]!r}")
            self.published[new[-1]] = self._mover()

    def _planned(self, what: str, file: str, inode: Inode) -> None:
        facts = self._parse(inode.data)
        if what != "link" or facts is None:
            self.violate("I4", f"plans/{file} appeared by {what}, {inode.data[-20:]!r}")
        uid = facts["plan"]
        self.plans[file] = uid
        for text, _spool in facts["claims"]:
            name = ClaimName.parse(text)
            assert name is not None
            known = self.claims.setdefault(name.id, Known())
            if known.plan:
                self.violate("I1", f"{name.id} is planned by {known.plan} and by {uid}")
            known.plan = uid
            self._once(name.id, known)

    # ---- leases ----

    def _lease(self, what: str, old: str, new: str, *, in_ended: bool) -> None:
        before = LeaseName.parse(old) if what != "link" else None
        after = LeaseName.parse(new)
        if before is None and after is None:
            return
        if after is None or (before is None and what != "link"):
            self.violate("I9", f"{what} of the lease {old or new}")
        assert after is not None
        if not after.living and not in_ended:
            self.violate("R19", f"the lease {new} has ended, and is not in workers/ended")
        worker = self.workers.get(after.worker)
        born = self.world.now
        if before is None and self.world.on_behalf_of is not None and after.worker in self.leases:
            return  # a dead worker's link, done twice: its lease stays ended, whatever lies there
        if before is None:
            if after.beat != 0 or self._mover() is not worker or after.worker in self.leases:
                self.violate("I9", f"{self._mover()} made the lease {new}")
        elif before.worker != after.worker or not before.living:
            self.violate("I9", f"{old} became {new}")
        elif after.ended_by is not None:
            self._ended(before, after)
        elif self._mover() is not worker:
            self.violate("I9", f"{self._mover()} renamed {old} to {new}")
        elif after.living and after.beat != (before.beat or 0) + 1:
            self.violate("I9", f"{old} became {new}")
        elif not after.living and worker is not None:
            self._retired(after, worker)
        elif self.watched and worker is not None:
            self._renewed(after, worker)
        verb = "enlist" if before is None else "renew" if after.living else "retire"
        self.count["end a lease" if after.ended_by else verb] += 1
        self.leases[after.worker] = after, born

    def _renewed(self, lease: LeaseName, worker: Process) -> None:
        """Check that the main thread is not stuck (R10), and that the busy see the dead (R14)."""
        now = self.world.now
        keeper = worker.guardian or worker
        slow = keeper.paused if worker.guardian is not None else worker.slow_beat
        slow |= worker.asleep_since > worker.stuck_since
        if now - worker.renewed_at > self.lease_s / 2 or math.isinf(worker.renewed_at):
            worker.late_at = now  # between two looks, a quarter of a lease is counted at most
        worker.renewed_at = now
        slow |= worker.late_at > worker.stuck_since
        if now - worker.stuck_since > 1.8 * self.lease_s and not slow:
            self.violate("R10", f"{lease} was renewed, and its main thread is stuck")
        if worker.paused or worker.troubles or self.world.traits.listings_s > 0.1:
            return
        for known in self.claims.values():
            for place in known.places if known.plan else ():
                owner = self.workers.get(place.name.owner or "")
                if place.area != "running" or owner is None or owner.alive:
                    continue
                since = max(owner.ended_at, worker.busy_since)
                if min(now - since, now - known.since) > 6.0 * self.lease_s:
                    self.violate("R14", f"{place.text} waits for the busy {worker} to see that")

    def opened(self, path: str) -> None:
        """Check which leases a process opens (R18): none of another host that is not in doubt."""
        area, _, text = path[len(self.root) + 1 :].partition("/")
        if area != "workers" or (lease := LeaseName.parse(text.rpartition("/")[2])) is None:
            return
        owner, reader = self.workers.get(lease.worker), self._mover()
        known, since = self.leases.get(lease.worker, (lease, 0.0))
        traits, now = self.world.traits, self.world.now
        blind = traits.omits or traits.listings_s > 0.1 or (reader is not None and reader.troubles)
        if blind or not known.living or not owner or not owner.alive or owner.paused:
            return
        if now - since > 0.3 * self.lease_s or reader is None or reader.paused:
            return
        if owner is not None and reader is not None and owner.host is not reader.host:
            self.violate("R18", f"{reader} opened {lease}, which is another host's")

    def _retired(self, lease: LeaseName, worker: Process) -> None:
        """Check that a retiring worker holds nothing that it knows of and could put back."""
        held = [
            place.text
            for known in self.claims.values()
            for place in known.places
            if place.area == "running" and place.name.owner == lease.worker
        ]
        hindered = any(what != "rename" or "/running/" not in at for what, at in worker.troubles)
        traits = self.world.traits
        lagging = traits.listings_s > 0.2 or (worker.troubles and traits.entries_s > 0)
        if held and not (hindered or lagging or self._could_not_know(worker.excuses)):
            self.violate("goodbye", f"{worker} became {lease}, and holds {', '.join(held)}")

    def _ended(self, before: LeaseName, after: LeaseName) -> None:
        worker, ender = self.workers.get(after.worker), self._mover()
        if self.workers.get(after.ended_by or "") is not ender:
            self.violate("I9", f"{ender} renamed {before} to {after}")
        age_s = self.world.now - self.leases[after.worker][1]
        if worker is not None and self.watched:
            self._justly_ended(before, worker, ender, age_s)
        if worker is not None:
            if worker.alive and age_s < 0.98 * self.lease_s:
                self.violate("I9", f"{before} was ended by {ender} after {age_s:.1f} s")
            worker.excuses.add("dead")

    def _justly_ended(
        self, lease: LeaseName, worker: Process, ender: Process | None, age_s: float
    ) -> None:
        if ender is worker or ender is None:
            return  # it gave up its lease, or its guardian saw its death
        same = ender.host is worker.host and ender.host.table is Table.OPEN
        sees = same and not (ender.troubles or self.world.traits.entries_s)
        if worker.alive and sees and not worker.stopped and age_s < 2.9 * self.lease_s:
            self.violate("R12", f"{ender} ended {lease}, whose process it sees run")
        guardian = worker.guardian
        if guardian is None or worker.alive or guardian.paused or guardian.troubles:
            return
        meant_to = guardian.alive or guardian.ended_at >= worker.ended_at
        killed = "dead" in guardian.excuses
        if meant_to and not killed and self.world.now - worker.ended_at > 3.0 + 0.3 * self.lease_s:
            self.violate("R17", f"{guardian} left it to {ender} to end {lease}")

    # ---- parts ----

    def _mover(self) -> Process | None:
        """Return whose doing it is: what a guardian does, its worker does."""
        mover = self.world.on_behalf_of
        if mover is None and self.world.current:
            mover = self.world.current.process
        return mover.guards or mover if mover is not None else None

    def _json(self, path: str) -> dict[str, Any] | None:
        inode = self.world.disk.find(path)
        return self._parse(inode.data) if inode is not None else None

    @staticmethod
    def _parse(data: bytes) -> dict[str, Any] | None:
        try:
            value = json.loads(data)
        except ValueError:
            return None
        return value if isinstance(value, dict) else None

    # ---- after a power loss ----

    def look_again(self) -> None:
        """Take stock of the disk as it is, and check it as a whole."""
        disk, base = self.world.disk, len(self.root) + 1
        self.claims, self.leases, self.plans, self.shown, self.published = {}, {}, {}, {}, {}
        for path, inode in disk.below(self.root):
            parts = path[base:].split("/")
            place = self._place(parts)
            if place is not None:
                known = self.claims.setdefault(place.name.id, Known())
                known.places.append(place)
                if place.area == "spools":
                    known.waited.add(str(place.name))
                if place.area != "staged":
                    self._whole(place, inode)
            elif parts[0] == "workers" and (lease := LeaseName.parse(parts[-1])) is not None:
                self.leases[lease.worker] = lease, self.world.now
            elif parts[0] == "outputs" and len(parts) == 2:
                self._output("link", [], parts, inode)
        for path, inode in disk.below(f"{self.root}/plans"):
            if _PLAN.fullmatch(path.rpartition("/")[2]):
                self._planned("link", path.rpartition("/")[2], inode)
        planned = {id for id, known in self.claims.items() if known.plan}
        gone = {id for id in planned if not self.claims[id].places}
        self.purged = {id: when for id, when in self.purged.items() if id in gone}
        for id, known in self.claims.items():
            self._once(id, known)
            for place in known.places:
                if place.area == "done":
                    self._has_output(place.name)
