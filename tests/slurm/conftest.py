"""The SLURM cluster of a test session."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import ROOT, Cluster


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, base: Path, rows: Path) -> Iterator[Cluster]:
    """The cluster; skipped where SLURM's packages cannot be had."""
    folder = tmp_path_factory.mktemp("slurm")
    show = "import os, json; print(json.dumps(dict(os.environ)), flush=True)"
    shell = ["sh", "-c", '"$0" -c "$1"; cat', sys.executable, show]
    process = subprocess.Popen(
        ["bash", str(ROOT / "scripts" / "slurm_cluster.sh"), *shell],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "SLURM_NODES": "3"},
    )
    line = process.stdout.readline()
    if not line:
        _, errors = process.communicate(timeout=60)
        if process.returncode == 77:
            pytest.skip(errors.strip())
        pytest.fail(errors)
    paths = f"{ROOT}:{Path(__file__).parent}"
    own = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
    cluster = Cluster({**json.loads(line), **own}, folder, base, rows)
    yield cluster
    process.stdin.close()  # what the cluster waits for
    process.wait(timeout=60)
    for node in cluster.started:
        node.kill()
