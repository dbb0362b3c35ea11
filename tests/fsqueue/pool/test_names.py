"""The grammar of names keeps its promises, and refuses every hostile name."""

from __future__ import annotations

import os
import string
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsqueue.pool.names import (
    COST_MAX,
    ID,
    KIND,
    SPOOL,
    WORKER,
    ClaimName,
    LeaseName,
    Role,
    is_of_this_host,
    new_worker_id,
    pid_of,
    priority_of,
    slug,
    vain_of,
)

EDGE = string.ascii_letters + string.digits
INNER = EDGE + "_-"


def words(longest: int) -> st.SearchStrategy[str]:
    return st.builds(
        str.__add__, st.sampled_from(EDGE), st.text(alphabet=INNER, max_size=longest - 1)
    )


CLAIMS = st.builds(
    ClaimName,
    words(100),
    words(32),
    st.integers(0, COST_MAX),
    st.integers(0, 9999),
    st.integers(0, 999_999),
    st.none() | words(80),
    st.integers(0, 99),
    st.integers(0, 9),
)
LEASES = st.one_of(
    st.builds(LeaseName, words(80)),
    st.builds(LeaseName, words(80), st.none(), words(80), st.booleans()),
    st.builds(LeaseName, words(80), st.integers(0, 10**12 - 1), st.none(), st.booleans()),
)

HOSTILE = {
    "nothing": "",
    "a dot": ".",
    "two dots": "..",
    "parent": "../x.k.c1.a0.r0",
    "absolute": "/etc/x.k.c1.a0.r0",
    "slash inside": "a/b.k.c1.a0.r0",
    "newline at the end": "x.k.c1.a0.r0\n",
    "newline inside": "x\ny.k.c1.a0.r0",
    "carriage return": "x.k.c1.a0.r0\r",
    "NUL": "x\0.k.c1.a0.r0",
    "space": "x y.k.c1.a0.r0",
    "300 characters": "x" * 300 + ".k.c1.a0.r0",
    "an id of 101": "x" * 101 + ".k.c1.a0.r0",
    "a kind of 33": "x." + "k" * 33 + ".c1.a0.r0",
    "an owner of 81": "x.k.c1.a0.r0@" + "w" * 81,
    "Arabic digit": "x.k.c٣.a0.r0",
    "superscript digit": "x.k.c².a0.r0",
    "letter beyond ASCII": "é.k.c1.a0.r0",
    "fullwidth dot": "x．k.c1.a0.r0",
    "escape sequence": "\x1b[31mx.k.c1.a0.r0",
    "cost with leading zero": "x.k.c01.a0.r0",
    "attempt with leading zero": "x.k.c1.a00.r0",
    "returns with leading zero": "x.k.c1.a0.r00",
    "cost too large": "x.k.c" + "9" * 19 + ".a0.r0",
    "attempt too large": "x.k.c1.a99999.r0",
    "returns too large": "x.k.c1.a0.r9999999",
    "negative cost": "x.k.c-1.a0.r0",
    "sign": "x.k.c+1.a0.r0",
    "underscored number": "x.k.c1_0.a0.r0",
    "fraction": "x.k.c1.5.a0.r0",
    "leading dot": ".x.k.c1.a0.r0",
    "leading dash": "-x.k.c1.a0.r0",
    "leading underscore": "_x.k.c1.a0.r0",
    "empty id": ".k.c1.a0.r0",
    "empty kind": "x..c1.a0.r0",
    "empty owner": "x.k.c1.a0.r0@",
    "owner with a dot": "x.k.c1.a0.r0@a.b",
    "two owners": "x.k.c1.a0.r0@a@b",
    "dot in the id": "x.y.k.c1.a0.r0",
    "a suffix": "x.k.c1.a0.r0.txt",
    "capital letters": "x.k.C1.A0.R0",
    "half a name": "x.k.c1.a0",
    "another order": "x.k.a0.c1.r0",
    "an NFS leftover": ".nfs0000000000000001",
    "a lease": "w.b000001",
    "priority 0": "x.k.c1.a0.r0.p0",
    "priority 10": "x.k.c1.a0.r0.p10",
    "priority after vain": "x.k.c1.a0.r0.v1.p1",
    "two priorities": "x.k.c1.a0.r0.p1.p2",
}


@given(CLAIMS)
def test_a_claims_name_survives_the_round_trip_and_stays_short(name: ClaimName) -> None:
    text = str(name)
    assert ClaimName.parse(text) == name
    assert len(text.encode()) <= 255
    assert not set(text) - set(INNER + ".@")


@given(CLAIMS)
def test_what_is_read_from_the_end_of_a_waiting_name_is_what_parsing_finds(name: ClaimName) -> None:
    waiting = replace(name, owner=None)
    text = str(waiting)
    assert (priority_of(text), vain_of(text)) == (name.priority, name.vain)


def test_the_priority_stays_through_a_claims_whole_life() -> None:
    name = ClaimName("x", "k", 7, priority=5)
    assert str(name) == "x.k.c7.a0.r0.p5" and str(name.owned_by("w")) == "x.k.c7.a0.r0.p5@w"
    assert str(name.owned_by("w").returned(failed=True)) == "x.k.c7.a1.r1.p5"
    assert str(name.owned_by("w").returned(failed=False, vain=True)) == "x.k.c7.a0.r1.p5.v1"
    assert str(ClaimName("x", "k", 7)) == "x.k.c7.a0.r0", "older names mean the default"


@pytest.mark.slow
@given(st.text() | st.from_regex(r"[\w.-]+\.k\.c\d+\.a\d+\.r\d+(@\w+)?\n?", fullmatch=True))
def test_whatever_parses_as_a_claim_is_formatted_as_the_same_bytes(text: str) -> None:
    name = ClaimName.parse(text)
    assert name is None or str(name) == text


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_claims_name_is_refused(text: str) -> None:
    assert ClaimName.parse(text) is None


def test_the_longest_name_that_the_grammar_allows_is_a_legal_file_name() -> None:
    name = ClaimName("i" * 100, "k" * 32, COST_MAX, 9999, 999_999, "w" * 80, 99, 9)
    assert ClaimName.parse(str(name)) == name
    assert len(str(name)) <= 255


@pytest.mark.parametrize(
    "pattern", [ID, KIND, SPOOL, WORKER], ids=["id", "kind", "spool", "worker"]
)
@pytest.mark.parametrize("text", ["", ".", "..", "../x", "a/b", "a\n", "\0", ".a", "-a", "_a", "é"])
def test_no_valid_name_can_leave_its_directory(pattern: object, text: str) -> None:
    assert pattern.fullmatch(text) is None  # type: ignore[attr-defined]


def test_a_failure_raises_the_attempt_and_every_return_makes_a_new_waiting_name() -> None:
    name = ClaimName("x", "k", 7, 1, 4, "w")
    assert name.returned(failed=True) == ClaimName("x", "k", 7, 2, 5)
    assert name.returned(failed=False) == ClaimName("x", "k", 7, 1, 5)
    assert ClaimName("x", "k", 7).owned_by("w") == ClaimName("x", "k", 7, 0, 0, "w")


# ---- leases ----


@given(LEASES)
def test_a_leases_name_survives_the_round_trip(name: LeaseName) -> None:
    assert LeaseName.parse(str(name)) == name
    assert len(str(name)) <= 255
    assert name.living == (name.beat is not None)


@pytest.mark.slow
@given(st.from_regex(r"[\w.-]+\.((leaving-)?(b\d+|dead@\w+)|left)\n?", fullmatch=True) | st.text())
def test_whatever_parses_as_a_lease_is_formatted_as_the_same_bytes(text: str) -> None:
    name = LeaseName.parse(text)
    assert name is None or str(name) == text


@pytest.mark.parametrize(
    "text",
    [
        "w",
        "w.b1",
        "w.b00001",
        "w.b0000001",  # b000001 with one zero more would be a second name for one beat
        "w.b٠٠٠٠٠١",
        "w.b-00001",
        "w.b0000001\n",
        "w.b" + "9" * 13,
        "w.dead",
        "w.dead@",
        "w.dead@../x",
        "w.left@y",
        "w.leaving-left",
        "w.leaving-",
        "w.leaving-leaving-b000001",
        "w.leavingb000001",
        "../w.left",
        ".w.left",
        "w w.left",
        "w" * 81 + ".left",
    ],
)
def test_a_hostile_leases_name_is_refused(text: str) -> None:
    assert LeaseName.parse(text) is None


@given(LEASES.filter(lambda name: name.living))
def test_r15_the_next_beat_goes_on_saying_leaving_and_so_does_the_end(name: LeaseName) -> None:
    assert name.following().leaving == name.leaving
    assert name.following(leaving=True).leaving and name.following(leaving=True).excuses
    assert name.dead("w").excuses == name.leaving
    assert LeaseName(name.worker).excuses, "it left"


# ---- making names ----


@given(st.text())
def test_a_slug_of_any_text_may_stand_in_an_id(text: str) -> None:
    made = slug(text)
    assert ID.fullmatch(f"{made}-abcdefghijkl")
    assert len(made) <= 60


def test_a_slug_keeps_what_is_legible() -> None:
    assert slug("output 12 (copy)") == "output_12_copy"
    assert slug("...") == "x"


def test_worker_ids_are_all_different_and_fit_the_grammar() -> None:
    made = {new_worker_id(Role.RECOVER) for _ in range(100)}
    assert len(made) == 100
    assert all(WORKER.fullmatch(id) for id in made)


@pytest.mark.parametrize("host", ["é" * 70, "-.-", "node7.cluster.example", "", "x" * 300])
def test_a_strange_host_name_still_makes_a_worker_id(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.uname", lambda: SimpleNamespace(nodename=host))
    assert WORKER.fullmatch(new_worker_id())
    assert is_of_this_host(new_worker_id())


@pytest.mark.parametrize("role", Role)
def test_an_id_shows_its_host_and_its_pid(role: Role) -> None:
    id = new_worker_id(role)
    assert is_of_this_host(id) and pid_of(id) == os.getpid()


@pytest.mark.parametrize("id", ["elsewhere-1-aaaaaa", "x", "", "a-b", "a-b-c"])
def test_an_id_of_another_host_or_without_a_pid_shows_that(id: str) -> None:
    assert not is_of_this_host(id)
    assert pid_of(id) == (1 if id.startswith("elsewhere") else None)
