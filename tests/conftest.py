"""Fixtures of all tests, the kinds of tests and their order, and the number of workers."""

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import long_files
from kinds import kinds

LEFT_OUT = {"process": "start processes", "training": "train a run", "slow": "are slow"}
LEFT_COUNTS = pytest.StashKey[dict[str, int]]()
LONG = 5  # seconds of processor time, above which a test is to be marked slow
LEFT_BEHIND = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK")
LEFT_BEHIND += ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")
ENVIRONMENT = {name: os.environ.get(name) for name in LEFT_BEHIND}
WORKER_MEMORY = 3 * 2**30  # bytes of a worker, its warm Python and the runs that they make


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="leave out what takes long, by kinds.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return as many workers as there are processors and memory; none for tests of one file."""
    names = [arg.partition("::")[0] for arg in config.args]
    if len(names) == 1 and Path(names[0]).is_file():
        return 0
    memory = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())
    there = int(memory[1]) * 1024 // WORKER_MEMORY if memory else 1
    return max(1, min(len(os.sched_getaffinity(0)), there))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests with their kinds, leave out by ``--fast`` what takes long, and order the rest."""
    left: dict[str, list[pytest.Item]] = {kind: [] for kind in LEFT_OUT}
    kept = []
    for item in items:
        assert isinstance(item, pytest.Function)
        for kind in sorted(kinds(item)):
            item.add_marker(kind)
        long = [kind for kind in LEFT_OUT if item.get_closest_marker(kind)]
        (left[long[0]] if long and config.getoption("fast") else kept).append(item)
    items[:] = sorted(kept, key=lambda item: long_files.start_order(item.nodeid))
    config.hook.pytest_deselected(items=[item for part in left.values() for item in part])
    config.stash[LEFT_COUNTS] = {kind: len(part) for kind, part in left.items()}
    if hasattr(config, "workeroutput"):
        config.workeroutput["left"] = config.stash[LEFT_COUNTS]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what a worker has left out: each of them collects all tests."""
    node.config.stash[LEFT_COUNTS] = getattr(node, "workeroutput", {}).get("left", {})


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    began = time.process_time()
    try:
        return (yield)
    finally:
        item.user_properties.append(("seconds", time.process_time() - began))


def pytest_runtest_teardown() -> None:
    """Undo what Lightning leaves in the environment, which other programs and tests believe."""
    for name, value in ENVIRONMENT.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say which tests --fast should leave out and which it has, and which files are long."""
    for report in terminalreporter.stats.get("passed", []):
        seconds = dict(report.user_properties).get("seconds", 0)
        if seconds > LONG and not LEFT_OUT.keys() & report.keywords.keys():
            terminalreporter.write_line(f"to be marked slow ({seconds:.0f} s): {report.nodeid}")
    reports = [
        r for part in terminalreporter.stats.values() for r in part if hasattr(r, "duration")
    ]
    durations = [(report.nodeid, report.duration) for report in reports]
    for file, seconds in long_files.missing(durations).items():
        terminalreporter.write_line(f"to be put into long_files.py ({seconds:.0f} s): {file}")
    counts = config.stash.get(LEFT_COUNTS, {})
    if config.getoption("fast") and counts:
        parts = ", ".join(f"{counts[kind]} that {what}" for kind, what in LEFT_OUT.items())
        terminalreporter.write_line(f"left out by --fast: {parts}")


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random Llama and its tokenizer."""
    from tiny_run import write_base

    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of a tiny random model of each architecture."""
    from tiny import ARCHITECTURES
    from tiny_run import write_base

    folder = tmp_path_factory.mktemp("bases")
    return {name: write_base(folder / name, name) for name in ARCHITECTURES}


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 prompt and completion rows of uneven lengths."""
    from tiny_run import write_rows

    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl")


def require_kernels() -> None:
    """Skip a test where there can be no kernels; where they could not be built, it fails."""
    from peft_lightning.kernels.native import library

    state = library.kernels_state()
    if "no C++ compiler" in state or not library.builds_here():
        pytest.skip(state)
    assert state == "compiled kernels"


@pytest.fixture
def with_kernels() -> None:
    """Skip a test where there can be no kernels."""
    require_kernels()


@pytest.fixture(params=["compiled kernels", "torch's operations"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test on a CPU with the compiled kernels, and once more without them."""
    from peft_lightning.kernels.native import library

    if request.param == "compiled kernels":
        require_kernels()
    else:
        monkeypatch.setattr(library, "_library", lambda: (None, "a test does without"))


@pytest.fixture(scope="module")
def lora_folder(base, tmp_path_factory):
    """A LoRA over ``base`` that changes its answers much."""
    import torch

    from peft_lightning.adapters import LoRA, save_adapter
    from peft_lightning.base_model import base_fingerprint, load_base_model

    folder = tmp_path_factory.mktemp("lora") / "best.ckpt"
    model, adapter = load_base_model(str(base)), LoRA(r=2)
    facts = {"base_fingerprint": base_fingerprint(model)}
    adapter.attach(model)
    torch.manual_seed(2)
    for tensor in adapter.state_dict(model).values():
        tensor.normal_()
    save_adapter(adapter, model, folder, facts)
    return folder
