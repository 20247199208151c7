"""Runs for the tests of comparisons: tiny ones that were trained, and folders of invented ones."""

from pathlib import Path

from peft_lightning import LoRA
from tiny_run import fit, write_rows


def trained_runs(base: Path, root: Path, ranks=(1, 4), seeds=(0, 1), **options) -> Path:
    """Train a run for each rank and seed; return the folder that they are in."""
    rows = write_rows(root / "rows.jsonl", 40)
    for r in ranks:
        for seed in seeds:
            fit(
                base,
                rows,
                root / "runs" / f"r{r}-seed{seed}",
                adapter=LoRA(r=r),
                seed=seed,
                data={"val_fraction": 0.3, "cache_dir": str(root / "cache")},
                **{"max_steps": 8, "max_epochs": -1, **options},
            )
    return root / "runs"
