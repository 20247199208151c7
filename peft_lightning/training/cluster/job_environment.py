"""The variables that a job is submitted with: those of its user, and not of a job around it."""

from __future__ import annotations

import os
from collections.abc import Iterable

from peft_lightning.process.slurm import TOKEN

OF_SITE = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_CLUSTERS", "SBATCH_CLUSTERS")
VARIABLES = {  # whose names are not those of their options
    "SBATCH_TIMELIMIT": "time",
    "SBATCH_ARRAY_INX": "array",
    "SBATCH_NO_REQUEUE": "requeue",
    "SBATCH_JOB_NAME": "jobname",
    "SBATCH_GPUS": "gpuspernode",
    "SBATCH_GRES": "gpuspernode",
    "SBATCH_MEM_PER_NODE": "mem",
    "SBATCH_MEM_PER_CPU": "mem",
    "SBATCH_MEM_PER_GPU": "mem",
}


def environment_for_sbatch(options: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Return the variables to submit with, and lines about those of SLURM's that matter.

    Variables of a job that this is called in would reach the new one; ``SBATCH_TIMELIMIT`` and the
    like override what a script says.

    Args:
        options: The names of the options that the script has, such as ``time``.
    """
    own = {option.replace("-", "").lower() for option in options}
    kept, lines = {}, []
    for name, value in os.environ.items():
        is_of_job = name.startswith(("SLURM_", "SRUN_", "PMI_", "PMIX_")) and name not in OF_SITE
        if is_of_job or name == TOKEN:
            continue
        if name.startswith("SBATCH_") and name not in OF_SITE:
            option = VARIABLES.get(name, name.removeprefix("SBATCH_").replace("_", "").lower())
            if option in own:
                lines.append(f"{name}={value} is not heeded: the job's own option counts")
                continue
            lines.append(f"{name}={value} is an option of this job: unset it for none")
        kept[name] = value
    return kept, lines
