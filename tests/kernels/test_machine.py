"""What depends on the processor holds on one that has AVX2 alone as well."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
# torch and its matrix library then take the ways of a processor without AVX512 and AMX
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


@pytest.mark.skipif(
    not torch.backends.cpu.get_cpu_capability().startswith("AVX512"),
    reason="this session's processor has no more than that",
)
def test_what_depends_on_the_processor_holds_with_avx2_alone(pytestconfig):
    selected = (
        "processor and not process and not slow"
        + " and not training" * pytestconfig.getoption("fast")
    )
    options = ["-m", selected, "-n", "0", "-p", "no:cacheprovider", "--override-ini", "addopts="]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--import-mode=importlib", *options],
        cwd=ROOT,
        env={**os.environ, **AVX2},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 100


@pytest.mark.skipif(AVX2.items() - os.environ.items() != set(), reason="for the session above")
@pytest.mark.processor
def test_this_session_has_avx2_alone():
    assert torch.backends.cpu.get_cpu_capability() == "AVX2"
    assert not torch.ops.mkldnn._is_mkldnn_bf16_supported()
