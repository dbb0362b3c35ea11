"""Write what submits an array of workers to a batch system, commented, for a person to adapt.

The tasks of an array are workers, not claims: any number of them may run, start late, be preempted,
or never run. So nothing depends on their exit statuses, and submitting again only adds workers. In
all of them the worker is the process that the system signals (`exec`), it is told early that its
time ends, and its log is in the pool's events/.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fsqueue.batch.systems import System, worker_limit_s
from fsqueue.errors import UsageError
from fsqueue.pool.settings import PoolDirectory

LEAD_S: Final = 120
"""How long before the end a worker is warned, where the system can do that."""
NOTE: Final = "Each task is a worker, not a claim: any number may run; submit again to add more."
EXEC: Final = "# exec: signals go to the process that was started, which must be the worker."
TRAP: Final = "trap '' USR1 USR2  # a warning must not end a worker that does not listen yet"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a person asked for."""

    workers: int
    python: str
    """The interpreter that has fsqueue, as the jobs see it."""
    time_s: float | None = None
    gpus: int = 1
    """Per worker; 0: a CPU worker."""
    cpus: int = 1
    memory_gib: int | None = None
    image: str = ""
    """Of the container, for Kubernetes."""


def script(system: System, pool: PoolDirectory, wanted: Wanted) -> str:
    """Return the text to submit, or for Flux and HyperQueue to run."""
    if re.search(r"[\n\\\"'$`]", pool.root):
        raise UsageError(
            f"{pool.root!r} holds a character that batch systems read in ways of their own. Give "
            f"the pool a plain path, or a link that has one."
        )
    write = {
        System.SGE: _sge,
        System.PBS: _pbs,
        System.LSF: _lsf,
        System.FLUX: _flux,
        System.KUBERNETES: _kubernetes,
        System.HYPERQUEUE: _hyperqueue,
    }[system]
    return "\n".join(write(pool, wanted)) + "\n"


def _command(pool: PoolDirectory, wanted: Wanted, *, limit: str | None) -> list[str]:
    words = [wanted.python, "-P", "-m", "fsqueue", "work", pool.root, "--others-ok"]
    words += ["--start-delay", f"{min(60.0, 0.1 * wanted.workers):g}s"]
    return [*words, *(["--time-limit", limit] if limit else [])]


def _shell(
    pool: PoolDirectory, wanted: Wanted, head: Sequence[str], *, limit: str | None = "auto"
) -> list[str]:
    hide = ["export CUDA_VISIBLE_DEVICES=  # a CPU worker"] if not wanted.gpus else []
    run = f"exec {shlex.join(_command(pool, wanted, limit=limit))}"
    return ["#!/bin/bash", *head, "", *hide, TRAP, EXEC, run]


def _sge(pool: PoolDirectory, wanted: Wanted) -> list[str]:
    head = [
        f"# {NOTE}",
        "# Submit with: qsub FILE",
        f"#$ -N {_name(pool)}",
        "#$ -S /bin/bash",
        f"#$ -t 1-{wanted.workers}",
        "#$ -cwd",
        "#$ -j y",
        f"#$ -o {pool.directory('events')}/",
        "# SIGUSR2 before a job is killed, SIGUSR1 before it is suspended:",
        "#$ -notify",
        "# A task whose node dies, or that is rescheduled (qmod -rj), starts again:",
        "#$ -r y",
    ]
    if wanted.time_s:
        head.append(f"#$ -l h_rt={_hms(wanted.time_s)}")
    if wanted.gpus:
        head.append("# The name of the resource is your site's (qconf -sc):")
        head.append(f"#$ -l gpu={wanted.gpus}")
    if wanted.memory_gib:
        head.append("# GPU programs need much address space, and h_vmem is about that:")
        head.append(f"#$ -l h_vmem={wanted.memory_gib}G")
    if wanted.cpus > 1:
        head.append("# The name of the parallel environment is your site's (qconf -spl):")
        head.append(f"#$ -pe smp {wanted.cpus}")
    return _shell(pool, wanted, head)


def _pbs(pool: PoolDirectory, wanted: Wanted) -> list[str]:
    select = f"select=1:ncpus={wanted.cpus}"
    select += f":ngpus={wanted.gpus}" if wanted.gpus else ""
    select += f":mem={wanted.memory_gib}gb" if wanted.memory_gib else ""
    head = [
        f"# {NOTE}",
        "# Submit with: qsub FILE",
        f"#PBS -N {_name(pool)[:15]}",
        *([f"#PBS -J 0-{wanted.workers - 1}"] if wanted.workers > 1 else []),
        f"#PBS -l {select}",
        *([f"#PBS -l walltime={_hms(wanted.time_s)}"] if wanted.time_s else []),
        "#PBS -j oe",
        f"#PBS -o {pool.directory('events')}/",
        "# Started again if its node dies:",
        "#PBS -r y",
        "# PBS sends SIGTERM and, after its kill_delay of 10 s, SIGKILL; the worker leaves by",
        "# itself a minute before its walltime ends (--time-limit auto).",
    ]
    return _shell(pool, wanted, head)


def _lsf(pool: PoolDirectory, wanted: Wanted) -> list[str]:
    head = [
        f"# {NOTE}",
        "# Submit with: bsub < FILE",
        f'#BSUB -J "{_name(pool)}[1-{wanted.workers}]"',
        f"#BSUB -n {wanted.cpus}",
        f"#BSUB -o {pool.directory('events')}/lsf-%J_%I.log",
        "# Started again if its node dies:",
        "#BSUB -r",
    ]
    if wanted.gpus:
        head.append(f'#BSUB -gpu "num={wanted.gpus}"')
    if wanted.memory_gib:
        head.append(f'#BSUB -R "rusage[mem={wanted.memory_gib}GB]"')
    if wanted.time_s:
        head.append("# In minutes, as is how early the worker is warned:")
        head.append(f"#BSUB -W {max(1, round(wanted.time_s / 60))}")
        if wanted.time_s > 2 * LEAD_S:
            head.append(f"#BSUB -wa USR1 -wt {LEAD_S // 60}")
    return _shell(pool, wanted, head)


def _flux(pool: PoolDirectory, wanted: Wanted) -> list[str]:
    words = ["flux", "submit", f"--cc=0-{wanted.workers - 1}", f"--job-name={_name(pool)}", "-n1"]
    words += [f"-c{wanted.cpus}", *([f"-g{wanted.gpus}"] if wanted.gpus else [])]
    if wanted.time_s:
        words += ["-t", f"{wanted.time_s:g}s"]
        if wanted.time_s > 2 * LEAD_S:
            words.append(f"--signal=USR1@{LEAD_S}s")
    words.append(f"--output={pool.directory('events')}/flux-{{{{id}}}}.log")
    return [
        "#!/bin/bash",
        f"# {NOTE}",
        "# Run it where flux is.",
        *(["export CUDA_VISIBLE_DEVICES=  # CPU workers"] if not wanted.gpus else []),
        f"exec {shlex.join([*words, *_command(pool, wanted, limit='auto')])}",
    ]


def _hyperqueue(pool: PoolDirectory, wanted: Wanted) -> list[str]:
    # Two files: HyperQueue opens each by itself, so that in one they would overwrite each other.
    # %{INSTANCE_ID} counts the starts of a task: else the next one truncates the log of the last.
    log = f"{pool.directory('events')}/hq-%{{JOB_ID}}_%{{TASK_ID}}.%{{INSTANCE_ID}}"
    words = ["hq", "submit", "--array", f"0-{wanted.workers - 1}", "--name", _name(pool)]
    words += ["--cpus", str(wanted.cpus)]
    # A task has the environment of its HyperQueue worker, not that of `hq submit`.
    gpus = ["--resource", f"gpus/nvidia={wanted.gpus}"]
    words += gpus if wanted.gpus else ["--env", "CUDA_VISIBLE_DEVICES="]
    words += ["--resource", f"mem={wanted.memory_gib * 1024}"] if wanted.memory_gib else []
    words += ["--stdout", f"{log}.out", "--stderr", f"{log}.log", "--crash-limit", "unlimited"]
    limit = None
    if wanted.time_s:
        words += ["--time-limit", f"{wanted.time_s:g}s"]
        limit = f"{worker_limit_s(wanted.time_s):g}s"
    return [
        "#!/bin/bash",
        f"# {NOTE}",
        "# Run it where `hq server` runs. --crash-limit unlimited needs HyperQueue 0.23 or newer.",
        "# A task whose HyperQueue worker is lost starts again on another one. HyperQueue ends a",
        "# task by SIGINT, and by SIGKILL a second later; it does not tell a task its time limit.",
        f"exec {shlex.join([*words, '--', *_command(pool, wanted, limit=limit)])}",
    ]


def _kubernetes(pool: PoolDirectory, wanted: Wanted) -> list[str]:
    limit = f"{worker_limit_s(wanted.time_s):g}s" if wanted.time_s else None
    command = _command(pool, wanted, limit=limit)
    resources = {"cpu": str(wanted.cpus)}
    if wanted.memory_gib:
        resources["memory"] = f"{wanted.memory_gib}Gi"
    if wanted.gpus:
        resources["nvidia.com/gpu"] = str(wanted.gpus)
    name = re.sub(r"[^a-z0-9]+", "-", _name(pool).lower()).strip("-")[:50]
    deadline = [f"      activeDeadlineSeconds: {int(wanted.time_s)}"] if wanted.time_s else []
    return [
        f"# {NOTE}",
        "# Submit with: kubectl create -f FILE. Set the image, the claim of the volume, and the",
        "# user who planned. No fsGroup: it makes claims writable by a group, and workers refuse",
        "# those.",
        "apiVersion: batch/v1",
        "kind: Job",
        "metadata:",
        f"  generateName: {name}-",
        "spec:",
        f"  completions: {wanted.workers}",
        f"  parallelism: {wanted.workers}",
        "  completionMode: Indexed",
        "  backoffLimitPerIndex: 3",
        "  podFailurePolicy:",
        "    rules:",
        "    # preempted or evicted, or its node is gone: started again, however often",
        "    - action: Ignore",
        "      onPodConditions:",
        "      - type: DisruptionTarget",
        '        status: "True"',
        "    # some claims failed (3), or it cannot work here at all: again would be the same",
        "    - action: FailIndex",
        "      onExitCodes:",
        "        operator: In",
        "        values: [2, 3, 4]",
        "  template:",
        "    spec:",
        "      restartPolicy: Never",
        "      terminationGracePeriodSeconds: 120  # to put its claim back after SIGTERM",
        *deadline,
        "      securityContext:",
        "        runAsUser: 1000  # who planned",
        "      containers:",
        "      - name: worker",
        f"        image: {json.dumps(wanted.image or 'IMAGE')}  # with fsqueue and its Python",
        f"        command: {json.dumps(command)}",
        "        env:",
        "        - {name: HOME, value: /tmp}",
        *(["        - {name: CUDA_VISIBLE_DEVICES, value: ''}"] if not wanted.gpus else []),
        "        resources:",
        f"          limits: {json.dumps(resources)}",
        "        volumeMounts:",
        f"        - {{name: shared, mountPath: {json.dumps(_mount(pool))}}}",
        "      volumes:",
        "      - name: shared",
        "        persistentVolumeClaim:",
        "          claimName: CLAIM  # of a volume that all nodes may write (ReadWriteMany)",
    ]


def _mount(pool: PoolDirectory) -> str:
    """Return where the shared volume is mounted: the inputs have to be below, too."""
    first = pool.root.split("/")[1]
    return f"/{first}"


def _name(pool: PoolDirectory) -> str:
    return "fsqueue-" + re.sub(r"[^A-Za-z0-9_-]", "_", pool.root.rsplit("/", 1)[-1])[:40]


def _hms(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600}:{whole % 3600 // 60:02}:{whole % 60:02}"
