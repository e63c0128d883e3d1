"""This process's rank and the number of processes, from Slurm's environment variables.

Only `srun` starts several tasks. A batch script and an allocation have a number of tasks too (SLURM_NTASKS), but run as one
process, so tasks are counted by SLURM_STEP_NUM_TASKS, which only the steps of `srun` set to more than 1.
"""

from collections.abc import Mapping

FIRST_PORT, PORTS = 20_000, 40_000


def rank_and_world(environment: Mapping[str, str]) -> tuple[int, int]:
    """This process's rank among all tasks of all jobs in a job array, and their number; (0, 1) outside Slurm."""
    array_id, first_id, id_step, num_jobs = (
        int(environment.get(f"SLURM_ARRAY_TASK_{name}", default))
        for name, default in (("ID", "0"), ("MIN", "0"), ("STEP", "1"), ("COUNT", "1"))
    )
    job = (array_id - first_id) // max(id_step, 1)
    tasks = _num_tasks(environment)
    task = int(environment.get("SLURM_PROCID", "0")) % tasks
    return job * tasks + task, num_jobs * tasks


def torchrun_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that torchrun would set, for a task of an `srun` step with several tasks; empty elsewhere.

    The ranks meet on the first host of the step, at a port that depends on the job.
    """
    tasks = _num_tasks(environment)
    if "RANK" in environment or tasks == 1:
        return {}
    hosts = environment.get("SLURM_STEP_NODELIST") or environment["SLURM_NODELIST"]
    return {
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "WORLD_SIZE": str(tasks),
        "MASTER_ADDR": environment.get("MASTER_ADDR") or first_host(hosts),
        "MASTER_PORT": environment.get("MASTER_PORT") or str(FIRST_PORT + int(environment["SLURM_JOB_ID"]) % PORTS),
    }


def first_host(hosts: str) -> str:
    """The first host in one of Slurm's host lists: `a-[03-05,9]-x,b` gives `a-03-x`."""
    name, bracket, rest = hosts.partition("[")
    if not bracket or "," in name:
        return name.partition(",")[0]
    ranges, _, after = rest.partition("]")
    first = ranges.partition(",")[0].partition("-")[0]
    return name + first + first_host(after)


def _num_tasks(environment: Mapping[str, str]) -> int:
    """Tasks in this process's `srun` step; 1 outside a step."""
    return int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
