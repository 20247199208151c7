"""Fixtures of all tests."""

from pathlib import Path

import pytest


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
    from peft_lightning.native import library

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
    from peft_lightning.native import library

    if request.param == "compiled kernels":
        require_kernels()
    else:
        monkeypatch.setattr(library, "_library", lambda: (None, "a test does without"))
