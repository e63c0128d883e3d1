"""Ranks from Slurm's environment variables."""

import pytest

from mbt.manifests.slurm import first_host, rank_and_world, torchrun_variables

SRUN = {
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_JOB_ID": "1234567",
}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        (SRUN, (3, 4)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, (0, 1)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "9",
                "SLURM_ARRAY_TASK_MIN": "5",
                "SLURM_ARRAY_TASK_STEP": "2",
                "SLURM_ARRAY_TASK_COUNT": "4",
            },
            (2, 4),
        ),
        ({**SRUN, "SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "2"}, (7, 8)),
    ],
)
def test_rank_and_world_count_tasks_of_steps_and_job_arrays(environment: dict[str, str], expected: tuple[int, int]) -> None:
    assert rank_and_world(environment) == expected


def test_a_task_of_srun_is_a_rank() -> None:
    assert torchrun_variables(SRUN) == {
        "RANK": "3",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "4",
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": str(20_000 + 1_234_567 % 40_000),
    }


@pytest.mark.parametrize(
    "others",
    [
        {"RANK": "0"},
        {"SLURM_STEP_NUM_TASKS": "1"},
    ],
)
def test_other_launchers_and_steps_with_one_task_set_nothing(others: dict[str, str]) -> None:
    assert torchrun_variables({**SRUN, **others}) == {}


def test_a_batch_script_sets_nothing() -> None:
    assert torchrun_variables({"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"}) == {}


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("a", "a"),
        ("a,b", "a"),
        ("a-[03-05,9],b", "a-03"),
        ("a[7,9]", "a7"),
        ("x.y,a[1-2]", "x.y"),
        ("r[1-2]n[08-10]", "r1n08"),
        ("a-[03-05]-x,b[1-2]", "a-03-x"),
    ],
)
def test_the_first_host_of_a_list(hosts: str, first: str) -> None:
    assert first_host(hosts) == first
