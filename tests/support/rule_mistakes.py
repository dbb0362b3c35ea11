"""A pytest plugin that makes one deliberate mistake for a whole run: RULE_MISTAKE names it.

The mistakes are in rules that no simulated file system shows; each is the replacement of a named
function. tests/test_rule_mutations.py runs each rule's own test with it.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, Final

from fsqueue.handler import Handler, Source
from fsqueue.pool import completeness, overwriting
from fsqueue.pool.overwriting import Earlier
from fsqueue.pool.settings import PoolDirectory, Spool
from fsqueue.python_file.handler import PythonFile
from fsqueue.scheduling.backlog import Speeds, Wanted
from fsqueue.scheduling.choose import Preferences

VARIABLE: Final = "RULE_MISTAKE"


@dataclass(frozen=True, slots=True)
class Mistake:
    """Which function of which module or class is wrong, what it does, and the test that fails."""

    owner: str
    function: str
    wrong: Any
    test: str
    everywhere: bool = False
    """Whether to make it in every Python process that the test starts, too."""


def _remove(pool: Any, path: str) -> str:
    os.unlink(path)
    return path


def _popen_without_session(*args: Any, **how: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(*args, **how | {"start_new_session": False})


def _everything_is_ours(target: Any, **how: Any) -> None:
    REFUSE(target, **how | {"recognise": lambda path: Earlier.SAME})


def _always_forced(target: Any, **how: Any) -> None:
    REFUSE(target, **how | {"force": True})


def _only_counted(pool: PoolDirectory, planned: Mapping[int, int], seen: Any) -> Any:
    if completeness.distinct(seen) == sum(planned.values()):
        return [], 0
    return COMPARE(pool, planned, seen)


def _without_the_code(self: PythonFile, path: str, options: Mapping[str, Any]) -> Source:
    found = self._cutter(options).survey(path, options["options"])
    return replace(found, detail=found)


def _unexplained(self: Handler) -> None:
    if not self.is_set_up:
        self.setup()
        self.is_set_up = True


def _numbered(paths: Sequence[str], suffix: str) -> list[str]:
    return [f"{number}{suffix}" for number, _ in enumerate(paths)]


def _without_priority(self: Preferences, id: str, vain: int, priority: int) -> Any:
    return STANDING(self, id, vain, 0)


def _by_weight(pool: PoolDirectory, live: Any, spools: Sequence[Spool], wanted: Wanted) -> Speeds:
    weights = tuple(spool.weight for spool in spools)
    return Speeds(weights, frozenset(), wanted.cost_per_second)


COMPARE: Final = completeness._compare
STANDING: Final = Preferences.standing
REFUSE: Final = overwriting.refuse_overwriting
PROGRAM: Final = "fsqueue.processes.program:Program"
OVERWRITING: Final = "tests/fsqueue/pool/test_overwriting.py::test_"
MERGE: Final = "tests/embed/outputs/test_merge.py::test_"
SUPERSEDE: Final = "tests/fsqueue/scheduling/test_supersede.py::test_"
TESTS: Final = "tests/fsqueue/processes/test_"
PYTHON: Final = "tests/fsqueue/test_python_file.py::test_"
MISTAKES: Final = {
    "R9 a worker that dies is not started again": Mistake(
        "fsqueue.worker.local_workers:LocalWorkers",
        "_should_restart",
        lambda self, slot: False,
        "tests/fsqueue/cli/test_run.py::"
        "test_r9_a_holder_that_dies_after_its_peers_left_strands_nothing",
        everywhere=True,
    ),
    "R20 a program stays in its worker's session": Mistake(
        "fsqueue.processes.program:",
        "subprocess",
        SimpleNamespace(**vars(subprocess) | {"Popen": _popen_without_session}),
        f"{TESTS}program.py::"
        "test_r20_a_program_leads_its_own_session_and_group_from_the_first_instruction",
    ),
    "R21 orphans are not reaped": Mistake(
        "fsqueue.processes.orphans:",
        "reap",
        lambda pid: False,
        f"{TESTS}program.py::test_r21_orphans_that_end_while_the_program_runs_are_reaped_meanwhile",
    ),
    "R22 what a program started runs on": Mistake(
        PROGRAM,
        "_others",
        lambda self: [],
        f"{TESTS}program.py::"
        "test_r22_what_a_program_left_running_has_ended_and_is_reaped_when_it_is_finished",
    ),
    "R23 the end of stderr is lost": Mistake(
        PROGRAM,
        "tail",
        lambda self: "",
        f"{TESTS}program.py::test_r23_a_huge_stderr_is_drained_and_its_end_kept",
    ),
    "R24 what a dead worker's programs left is not found": Mistake(
        "fsqueue.processes.leftovers:",
        "everything_of",
        lambda worker: [],
        f"{TESTS}leftovers.py::test_r24_all_that_a_dead_workers_programs_left_is_ended_and_counted",
    ),
    "R25 a temporary directory stays": Mistake(
        "fsqueue.processes.temporary:",
        "_remove",
        lambda path: None,
        f"{TESTS}temporary.py::test_r25_a_read_only_tree_is_removed",
    ),
    "R26 descriptors that are missing stay so": Mistake(
        "fsqueue.processes.standard_streams:",
        "open_missing",
        lambda: None,
        f"{TESTS}standard_streams.py::"
        "test_r26_no_file_becomes_a_standard_stream_of_a_process_without_them",
        everywhere=True,
    ),
    "R27 what follows {output} is ignored": Mistake(
        "fsqueue.command:",
        "_choose_suffix",
        lambda given, argv: (".out", list(argv)),
        "tests/fsqueue/test_command.py::test_r27_what_follows_output_in_an_argument_is_its_suffix",
    ),
    "R28 an output that is still written to is published": Mistake(
        "fsqueue.command:",
        "_replace_by_copy",
        lambda work: None,
        "tests/fsqueue/test_command.py::"
        "test_r28_an_output_that_a_process_may_still_write_to_is_published_as_a_copy",
    ),
    "R29 CPU time is not counted": Mistake(
        PROGRAM,
        "cpu_s",
        lambda self: 0.0,
        f"{TESTS}program.py::test_r29_cpu_time_is_that_of_the_program_and_of_all_its_descendants",
    ),
    "R30 claims are counted, not compared": Mistake(
        "fsqueue.pool.completeness:",
        "_compare",
        _only_counted,
        "tests/fsqueue/pool/test_completeness.py::"
        "test_R30_as_many_claims_of_an_unseen_plan_do_not_stand_for_those_that_are_missing",
    ),
    "R34 a repair removes": Mistake(
        "fsqueue.pool.claims:",
        "set_aside",
        _remove,
        "tests/fsqueue/maintenance/test_restore.py::test_R34_a_copy_of_a_done_claim_is_set_aside",
    ),
    "R35 a repair chooses a copy that is not whole": Mistake(
        "fsqueue.maintenance.restore:",
        "_is_whole",
        lambda place: True,
        "tests/fsqueue/maintenance/test_restore.py::"
        "test_R35_a_copy_that_is_not_whole_is_not_chosen",
    ),
    "R36 an input under another name is not seen": Mistake(
        "fsqueue.pool.overwriting:",
        "_is_same",
        lambda path, facts: False,
        f"{OVERWRITING}R36_an_input_is_never_replaced_whatever_it_is_called",
    ),
    "R37 whatever is in the way is ours": Mistake(
        "fsqueue.pool.overwriting:",
        "refuse_overwriting",
        _everything_is_ours,
        f"{OVERWRITING}R37_a_file_that_is_not_ours_is_never_replaced",
    ),
    "R38 nothing needs --force": Mistake(
        "fsqueue.pool.overwriting:",
        "refuse_overwriting",
        _always_forced,
        f"{OVERWRITING}R38_another_result_is_replaced_only_by_force",
    ),
    "R39 whatever torch saved is taken for ours": Mistake(
        "embed.outputs.recognise:",
        "is_features",
        lambda path: True,
        "tests/embed/outputs/test_recognise.py::test_r39_features_are_recognised_by_their_keys",
    ),
    "R40 the ending of a file does not matter": Mistake(
        "embed.outputs.formats:",
        "choose_format",
        lambda out, given, planned="safetensors": given or planned,
        f"{MERGE}R40_an_ending_that_promises_another_format_is_refused",
    ),
    "R41 any two tables are joined": Mistake(
        "embed.outputs.merge:",
        "select",
        lambda found, request: found[:2],
        f"{MERGE}R41_two_poolings_are_not_joined_unless_asked_for",
    ),
    "R42 a format is looked at when it is written": Mistake(
        "embed.outputs.formats:",
        "check_format",
        lambda format, **how: None,
        "tests/embed/cli/test_commands.py::"
        "test_R42_what_can_be_refused_is_refused_before_the_model_is_loaded",
        everywhere=True,
    ),
    "R43 former versions of an input are computed, too": Mistake(
        "fsqueue.scheduling.supersede:",
        "_end",
        lambda pool, old, me, journal: False,
        f"{SUPERSEDE}R43_a_changed_input_replaces_its_former_claims",
    ),
    "R44 what shares a claim with a changed input is forgotten": Mistake(
        "fsqueue.scheduling.supersede:",
        "companions",
        lambda pool, handler, versions: set(),
        f"{SUPERSEDE}R44_inputs_that_share_a_claim_with_a_changed_one_are_planned_again",
    ),
    "R45 what was superseded stays so": Mistake(
        "fsqueue.scheduling.supersede:",
        "_bring_back",
        lambda pool, old, journal: False,
        f"{SUPERSEDE}R45_an_input_that_is_as_it_was_gets_its_claims_back",
    ),
    "R46 settings that are not the pool's are ignored": Mistake(
        "fsqueue.pool.settings:",
        "refuse_other_settings",
        lambda *given, **named: None,
        "tests/fsqueue/cli/test_plan_refusals.py::"
        "test_R46_a_setting_that_is_not_the_pools_is_refused",
        everywhere=True,
    ),
    "R47 what is left out is not named": Mistake(
        "fsqueue.scheduling.inputs:Inputs",
        "leave_out",
        lambda self, what, path: None,
        "tests/fsqueue/scheduling/test_inputs.py::"
        "test_R47_everything_in_a_directory_is_planned_or_named",
    ),
    "R48 every length is planned": Mistake(
        "embed.models.generic.shape:",
        "refuse_too_long",
        lambda folder, asked, what="": None,
        "tests/embed/models/test_generic.py::"
        "test_R48_what_planning_accepts_is_computed_and_what_it_refuses_would_fail",
    ),
    "R49 a merge is looked at when it runs": Mistake(
        "fsqueue.slurm.submit:",
        "check_merge",
        lambda command: None,
        "tests/fsqueue/slurm/test_scripts.py::"
        "test_R49_a_merge_that_would_be_refused_is_refused_at_submission",
        everywhere=True,
    ),
    "R50 a log line waits for its reader": Mistake(
        "fsqueue.cli.stderr_log:StderrLog",
        "_never_blocks",
        lambda self: True,
        "tests/fsqueue/cli/test_stderr_log.py::"
        "test_r50_a_full_pipe_holds_nothing_up_and_what_was_dropped_is_counted",
    ),
    "R51 a claim that failed here is taken here again at once": Mistake(
        "fsqueue.scheduling.choose:",
        "_is_elsewhere",
        lambda peer, me: False,
        "tests/fsqueue/scheduling/test_choose.py::"
        "test_r51_a_claim_that_failed_on_this_host_is_left_to_another_host_for_a_while",
    ),
    "R70 a file that was edited is run": Mistake(
        "fsqueue.python_file.handler:PythonFile",
        "_refuse_changed",
        lambda self, options: None,
        f"{PYTHON}a_file_that_changed_fails_its_claims_by_name_before_anything_of_it_runs",
        everywhere=True,
    ),
    "R71 what lies beside a file is not looked for": Mistake(
        "fsqueue.python_file.code:",
        "refuse_neighbours",
        lambda data, path: None,
        f"{PYTHON}a_file_that_imports_what_lies_beside_it_is_refused_with_the_line",
        everywhere=True,
    ),
    "R72 the code is no part of an input's version": Mistake(
        "fsqueue.python_file.handler:PythonFile",
        "survey",
        _without_the_code,
        f"{PYTHON}planning_again_after_an_edit_replaces_what_has_not_run",
        everywhere=True,
    ),
    "R73 a claim is charged for a setup that fails": Mistake(
        "fsqueue.handler:Handler",
        "set_up",
        _unexplained,
        f"{PYTHON}code_that_cannot_be_loaded_or_set_up_charges_no_claim",
        everywhere=True,
    ),
    "R74 what was made from an input is named by its number": Mistake(
        "fsqueue.command:",
        "_member_names",
        _numbered,
        "tests/fsqueue/history/test_outputs.py::"
        "test_several_inputs_are_one_claim_and_its_tar_has_one_file_for_each",
        everywhere=True,
    ),
    "R75 the priority of a claim does not matter": Mistake(
        "fsqueue.scheduling.choose:Preferences",
        "standing",
        _without_priority,
        "tests/fsqueue/scheduling/test_choose.py::"
        "test_r75_a_higher_priority_goes_before_size_and_before_what_is_loaded",
    ),
    "R76 a plan goes by weights, whatever was measured": Mistake(
        "fsqueue.scheduling.backlog:",
        "spool_speeds",
        _by_weight,
        "tests/fsqueue/scheduling/test_backlog.py::"
        "test_r76_a_plan_into_a_live_pool_is_shared_out_by_measured_speeds",
    ),
    "R77 what lacked memory is tried again anywhere": Mistake(
        "fsqueue.pool.requirements:",
        "requiring",
        lambda kind, capability: kind,
        "tests/fsqueue/cli/test_plan.py::"
        "test_r77_a_claim_that_lacked_memory_is_tried_again_where_there_is_more",
        everywhere=True,
    ),
    "R78 what made an output is not recorded with it": Mistake(
        "fsqueue.worker.attempts.provenance:Surroundings",
        "facts",
        lambda self: {},
        "tests/fsqueue/history/test_provenance.py::test_r78_it_stays_when_workers_are_forgotten",
        everywhere=True,
    ),
}


def pytest_collection_finish() -> None:
    """Make the mistake, also where the function was imported by name."""
    make()


def make() -> None:
    """Make the mistake in this process."""
    mistake = MISTAKES[os.environ[VARIABLE]]
    module, _, name = mistake.owner.partition(":")
    owner = importlib.import_module(module)
    owner = getattr(owner, name) if name else owner
    right = getattr(owner, mistake.function)
    setattr(owner, mistake.function, mistake.wrong)
    if not callable(right):
        return  # a module that this one uses: the others use the right one
    for other in [
        m for n, m in sys.modules.items() if n.startswith(("fsqueue.", "embed.", "tests."))
    ]:
        for known in [n for n, value in vars(other).items() if value is right]:
            setattr(other, known, mistake.wrong)
