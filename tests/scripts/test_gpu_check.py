"""The GPU check: what it finds, what it says, and all of it on a CPU with tiny models."""

import importlib.metadata
import math
import os
import re
import subprocess
import sys
import time
import venv
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts" / "benchmarks"
GIVEN = ["torch", "transformers", "lightning", "peft", "pyarrow"]  # of the machine with the GPU
sys.path.append(str(SCRIPTS))

import gpu_check  # noqa: E402
import gpu_report  # noqa: E402
import gpu_tests  # noqa: E402
import random_models  # noqa: E402
import throughput  # noqa: E402
import wheels  # noqa: E402


def closure(names):
    """Return the names of installed packages and of all that they need."""
    seen, todo = {}, [(canonicalize_name(name), frozenset()) for name in names]
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen:
            continue
        try:
            seen[name, extras] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        for text in seen[name, extras].requires or []:
            need = Requirement(text)
            wanted = extras or {""}
            if need.marker is None or any(need.marker.evaluate({"extra": e}) for e in wanted):
                todo.append((canonicalize_name(need.name), frozenset(need.extras)))
    return {name: distribution for (name, _), distribution in seen.items()}


# ---- all of it ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A Python that has the five packages and what they need, and none of ours."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for distribution in closure(GIVEN).values():
        for name in {f.parts[0] for f in distribution.files} - {"..", "__pycache__"}:
            target = Path(distribution.locate_file(name))
            if target.exists() and not (site / name).exists():
                (site / name).symlink_to(target)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def wheel_folder(tmp_path_factory):
    """The wheels that it needs, made of what is installed here."""
    folder = tmp_path_factory.mktemp("wheels")
    for name in wheels.NEEDED:
        distribution = importlib.metadata.distribution(name)
        with zipfile.ZipFile(
            folder / f"{name}-{distribution.version}-py3-none-any.whl", "w"
        ) as out:
            for file in distribution.files:
                if ".." not in file.parts and "__pycache__" not in file.parts:
                    out.write(distribution.locate_file(file), str(file))
    return folder


def test_it_runs_on_a_cpu_with_five_packages_and_three_wheels(bare, wheel_folder, tmp_path):
    command = ["bash", ROOT / "scripts" / "gpu_check.sh", "--device", "cpu", "--tiny"]
    command += ["--minutes", "8", "--wheels", wheel_folder, "--write", tmp_path / "report.md"]
    command += ["--tests", "flash_kernel and bfloat16 or lack_of_memory"]
    kept = {name: os.environ[name] for name in ("PATH", "HOME")}
    done = subprocess.run(
        command,
        env={**kept, "PYTHON": str(bare), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    report = (tmp_path / "report.md").read_text()
    assert done.returncode == 0, report + done.stderr
    assert done.stdout.strip() == report.strip()
    assert "no GPU was measured" in report
    assert "| from wheels | iniconfig, pluggy, pytest |" in report
    assert "| torch | " in report
    assert "2 passed, 0 failed, 0 skipped" in report
    rows = {line.split(" | ")[0]: line.split(" | ") for line in report.splitlines()}
    for name in ("| ours", "| peft_packed"):
        _, rounds, speed, memory, share, *_ = rows[name]
        assert rounds == "1"
        assert float(speed.replace(",", "")) > 0
        assert float(memory.replace(",", "")) > 50  # MiB: torch alone is more
        assert re.fullmatch(r"\d+%", share)
    losses = [rows[name][-1].strip(" |").split(", ")[0] for name in ("| ours", "| peft_packed")]
    assert float(losses[0]) == pytest.approx(float(losses[1]), abs=0.02)  # both compute in bfloat16
    assert rows["| peft_packed_flash"][1].startswith("not measured: flash_attn is not installed")
    assert "All passed that this machine can do." in report


# ---- the packages ------------------------------------------------------------------------------


def test_the_wheels_are_what_pytest_needs_beyond_the_five_packages():
    assert closure(["pytest"]).keys() - closure(GIVEN).keys() <= set(wheels.NEEDED)


def test_wheels_of_installed_packages_are_left_packed(tmp_path):
    for name in ("pytest", "not_there"):
        with zipfile.ZipFile(tmp_path / f"{name}-1-py3-none-any.whl", "w") as out:
            out.writestr(f"{name}.py", "")
    assert wheels.unpack(tmp_path, tmp_path / "site") == ["not_there"]
    assert [file.name for file in (tmp_path / "site").iterdir()] == ["not_there.py"]


def test_a_folder_without_wheels_is_an_error(tmp_path):
    with pytest.raises(SystemExit, match="there are no wheels; --collect-wheels"):
        wheels.unpack(tmp_path, tmp_path / "site")


def test_a_gpu_that_is_not_there_is_an_error_of_one_line(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(
        SystemExit, match=r"^error: --device cuda: torch finds no CUDA device here; "
    ):
        gpu_check.require_packages(SimpleNamespace(device="cuda"))


# ---- the tests ---------------------------------------------------------------------------------


def test_every_file_with_a_gpu_test_is_run():
    found = gpu_tests.files_with_gpu_tests()
    named = [f for f in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in f.read_text()]
    assert set(named) - {Path(__file__)} <= set(found)
    assert set((ROOT / "tests" / "gpu").glob("test_*.py")) <= set(found)
    assert Path(__file__) not in found


def run_those_in(folder, monkeypatch, deadline):
    """Run a folder's own tests as if they were the project's."""
    (folder / "pyproject.toml").write_text('[tool.pytest.ini_options]\nmarkers = ["gpu: x"]\n')
    files = sorted((folder / "tests").iterdir())
    monkeypatch.setattr(gpu_tests, "ROOT", folder)
    monkeypatch.setattr(gpu_tests, "files_with_gpu_tests", lambda: files)
    return gpu_tests.run_tests("cuda", deadline, dict(os.environ))


def test_what_pytest_says_of_each_test_is_read(tmp_path, monkeypatch):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_some.py").write_text(
        "import pytest\n"
        "@pytest.mark.gpu\n"
        "@pytest.mark.parametrize('x', ['one two', 'three'])\n"
        "def test_passes(x): pass\n"
        "@pytest.mark.gpu\n"
        "def test_fails(): assert 1 == 2\n"
        "@pytest.mark.gpu\n"
        "@pytest.mark.skip(reason='no such library')\n"
        "def test_is_skipped(): pass\n"
        "def test_of_a_cpu(): pass\n"
    )
    (tmp_path / "tests" / "test_broken.py").write_text("@pytest.mark.gpu\ndef test_x(): pass\n")
    found = run_those_in(tmp_path, monkeypatch, math.inf)
    outcomes = {name.rpartition("/")[2]: how for name, how in found.outcomes.items()}
    assert outcomes == {
        "test_some.py::test_passes[one two]": "PASSED",
        "test_some.py::test_passes[three]": "PASSED",
        "test_some.py::test_fails": "FAILED",
        "test_some.py::test_is_skipped": "SKIPPED",
        "test_broken.py": "ERROR",
    }
    reasons = {name.rpartition("/")[2]: why for name, why in found.reasons.items()}
    assert "assert 1 == 2" in reasons["test_some.py::test_fails"]
    assert "no such library" in reasons["test_some.py::test_is_skipped"]
    assert "NameError" in reasons["test_broken.py"]
    assert not found.problems
    assert len(found.failed()) == 2


def test_what_still_runs_when_the_time_is_over_is_stopped_and_said(tmp_path, monkeypatch):
    (tmp_path / "tests").mkdir()
    for number in range(gpu_tests.AT_ONCE + 1):
        (tmp_path / "tests" / f"test_{number}.py").write_text(
            "import pytest, time\n@pytest.mark.gpu\ndef test_slow(): time.sleep(600)\n"
        )
    found = run_those_in(tmp_path, monkeypatch, time.monotonic() + 3)
    *stopped, waiting = found.problems
    assert stopped == [
        f"tests/test_{n}.py: stopped, its time was over" for n in range(len(stopped))
    ]
    assert waiting == f"tests/test_{len(stopped)}.py: no time left"


# ---- the comparison ----------------------------------------------------------------------------


def test_the_flops_of_a_token_are_those_counted_by_hand():
    config = random_models.config_of("tiny")  # 64 wide, 128 inside, 4 heads of 16, 2 of keys
    weights = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128
    adapter = 16 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128))
    attention = 6 * 2 * 64 * 21  # rows of 41 tokens only: a query sees 21 keys on average
    wanted = 2 * (4 * weights + 6 * adapter + attention) + 4 * 512 * 64 / 3
    assert throughput.needed_flops(config, longest=41) == pytest.approx(wanted)


def test_a_batch_is_as_large_as_the_card_allows():
    config = random_models.config_of("Llama-3.1-8B")
    weights = random_models.weight_bytes(config)
    assert weights == pytest.approx(2 * 8.03e9, rel=1e-3)  # the model card's 8.03 billion
    rows = [gpu_check.rows_that_fit(config, weights, n * 2**30) for n in (16, 24, 80, 141)]
    assert rows[0] < 1 <= rows[1] < rows[2] < rows[3] == gpu_check.MOST_ROWS


def test_a_variant_that_fails_or_has_no_time_does_not_stop_the_next(tmp_path):
    options = SimpleNamespace(rounds=1, model=str(tmp_path / "none"), precision="bf16")
    found = throughput.measure(["ours", "peft_packed"], options)
    assert found.results == {"ours": [], "peft_packed": []}
    assert list(found.failures) == ["ours", "peft_packed"]
    assert all(options.model in why for why in found.failures.values())
    found = throughput.measure(["ours"], options, deadline=time.monotonic())
    assert found.failures == {"ours": "no time left for round 1"}


@pytest.mark.parametrize(
    ("card", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA L4", 121),
        ("NVIDIA L40", None),
        ("Tesla T4", None),
    ],
)
def test_the_peak_of_a_card_is_found_by_its_whole_name(card, tera):
    assert gpu_report.peak_flops(card) == (tera and tera * 1e12)


# ---- the report --------------------------------------------------------------------------------


def a_check():
    """Return a check in which all went well."""
    process = {"tokens": [100, 100, 300], "wall": [9.0, 1.0, 1.0], "cpu": [1.0] * 3}
    process |= {"losses": [5.0, 4.0, 3.0], "labelled": [30] * 3, "peak_bytes": 2**30, "warm_up": 1}
    results = {"ours": [process], "peft_packed": [process], "peft_packed_flash": []}
    failures = {"peft_packed_flash": "flash_attn is not installed"}
    measured = throughput.Measured(results, [400.0], failures)
    comparison = gpu_report.Comparison("tiny", measured, setting="Rows.", flops=1e10)
    tests = gpu_tests.Tests({"tests/test_a.py::test_x": "PASSED"})
    return gpu_report.Check("cuda", "NVIDIA L4", {"card": "L4"}, tests, "", [comparison])


def test_the_table_has_medians_and_shares():
    check = a_check()
    assert not gpu_report.problems(check)
    text = gpu_report.markdown(check)
    # 100 and 300 tokens/s: 200, half of the 400 of the products; 2e12 of the card's 121e12 FLOP/s
    assert "| ours | 1 | 200 | 1,024 | 50% | 2% | 1.00 | 5.000, 4.000 |" in text
    assert "| peft_packed_flash | not measured: flash_attn is not installed |" in text
    assert "no GPU was measured" not in text


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda c: c.tests.outcomes.update({"tests/t.py::test_y": "FAILED"}), "tests/t.py::test_y"),
        (lambda c: c.tests.problems.append("tests/t.py: stopped"), "tests/t.py: stopped"),
        (lambda c: setattr(c, "why_no_tests", "no pytest"), "no pytest"),
        (
            lambda c: (
                c.comparisons[0].measured.results["ours"].clear(),
                c.comparisons[0].measured.failures.update(ours="out of memory"),
            ),
            "tiny, ours: out of memory",
        ),
        (
            lambda c: c.comparisons.append(
                gpu_report.Comparison("8B", why_not="no time", failed=True)
            ),
            "8B: no time",
        ),
    ],
)
def test_whatever_fails_is_said_and_decides_the_status(spoil, said):
    check = a_check()
    spoil(check)
    assert any(line.startswith(said) for line in gpu_report.problems(check))
    assert f"- {said}" in gpu_report.markdown(check)


def test_a_model_that_does_not_fit_is_said_and_no_failure():
    check = a_check()
    check.comparisons.append(gpu_report.Comparison("8B", why_not="it is larger than the card"))
    assert not gpu_report.problems(check)
    assert "Not measured: it is larger than the card." in gpu_report.markdown(check)
