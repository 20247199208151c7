import contextlib
import errno
import os
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from peft_lightning.files import (
    atomic,
    atomic_file,
    atomic_folder,
    atomic_text,
    existing_folder,
    writing,
)

CRASHED = 9
STEPS = ["fsync", "mkdir", "rename", "replace", "rmdir", "unlink"]  # of the module os


def write(path, content):
    with atomic_folder(path) as folder:
        (folder / "a").write_text(content)
        (folder / "sub").mkdir()
        (folder / "sub" / "b").write_text(content)


def content(path):
    folder = existing_folder(path)
    return {str(f.relative_to(folder)): f.read_text() for f in folder.rglob("*") if f.is_file()}


def whole(text):
    return {"a": text, "sub/b": text}


def crash_at(step, action):
    """Run ``action`` in a process of its own that is gone before its ``step``-th system call.

    Counted are the calls that change the disk: those of ``STEPS`` and the exchange. Returns
    whether it got that far.
    """
    child = os.fork()
    if child == 0:
        calls = 0

        def counting(function):
            def call(*args, **kwargs):
                nonlocal calls
                calls += 1
                if calls == step:
                    os._exit(CRASHED)
                return function(*args, **kwargs)

            return call

        for name in STEPS:
            setattr(os, name, counting(getattr(os, name)))
        atomic._exchange = counting(atomic._exchange)
        status = 1
        with contextlib.suppress(BaseException):
            action()
            status = 0
        os._exit(status)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, CRASHED)
    return code == CRASHED


@pytest.fixture(params=[True, False], ids=["exchange", "two renames"])
def exchange(request, monkeypatch):
    """Whether the file system can exchange two names in one step."""
    if not request.param:
        monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    return request.param


def test_a_new_folder_takes_the_place_of_the_old_one(exchange, tmp_path):
    path = tmp_path / "deep" / "x"
    for text in ("one", "two", "three"):
        write(path, text)
        assert content(path) == whole(text)
    assert [p.name for p in path.parent.iterdir()] == ["x"]


@pytest.mark.parametrize("first", [True, False], ids=["nothing there", "old one there"])
def test_a_crash_at_any_step_leaves_the_old_folder_or_the_new_one(exchange, first, tmp_path):
    step, seen = 0, []
    while True:
        step += 1
        path = tmp_path / str(step) / "x"
        if not first:
            write(path, "old")
        crashed = crash_at(step, lambda path=path: write(path, "new"))
        try:
            seen.append(content(path))
        except FileNotFoundError:
            seen.append(None)
        assert seen[-1] in (None if first else whole("old"), whole("new"))
        write(path, "next")  # and what the crash left does not stand in the way
        assert content(path) == whole("next")
        assert [p.name for p in path.parent.iterdir()] == ["x"]
        if not crashed:
            break
    assert step > 5
    assert seen[0] != seen[-1] == whole("new")
    assert seen == sorted(seen, key=lambda found: found == whole("new"))  # new once, new for good


def test_the_folder_before_is_kept_where_asked(exchange, tmp_path):
    path, kept = tmp_path / "x", tmp_path / "kept"
    for text, before in (("one", None), ("two", "one"), ("three", "two")):
        with atomic_folder(path, kept) as folder:
            (folder / "a").write_text(text)
        assert content(path) == {"a": text}
        assert not kept.exists() if before is None else content(kept) == {"a": before}
        assert len(list(tmp_path.iterdir())) == 1 + kept.exists()


def test_a_crash_at_any_step_leaves_two_whole_folders_where_the_one_before_is_kept(
    exchange, tmp_path
):
    def save(folder, text):
        with atomic_folder(folder / "x", folder / "kept") as new:
            (new / "a").write_text(text)

    step, crashed, seen = 0, True, set()
    while crashed:
        step += 1
        folder = tmp_path / str(step)
        for text in "12":
            save(folder, text)
        crashed = crash_at(step, lambda folder=folder: save(folder, "3"))
        seen.add((content(folder / "x")["a"], content(folder / "kept")["a"]))
        save(folder, "4")
        assert [content(folder / "x")["a"], (folder / "kept").is_dir()] == ["4", True]
        assert sorted(p.name for p in folder.iterdir()) == ["kept", "x"]
    assert {("2", "1"), ("3", "2")} <= seen
    assert seen <= {("2", "1"), ("3", "1"), ("3", "2")}


def test_a_crash_at_any_step_leaves_the_old_text_or_the_new_one(tmp_path):
    path, text, step, crashed = tmp_path / "x.json", "new", 0, True
    while crashed:
        step += 1
        atomic_text(path, "old")
        crashed = crash_at(step, lambda: atomic_text(path, text))
        assert path.read_text() in ("old", text)
    assert path.read_text() == text
    assert step > 2
    atomic_text(path, "again")
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_an_error_leaves_the_old_folder_and_nothing_else(exchange, tmp_path):
    def write_half():
        with atomic_folder(tmp_path / "x") as folder:
            (folder / "a").write_text("new")
            raise OSError(errno.ENOSPC, "disk is full")

    write(tmp_path / "x", "old")
    with pytest.raises(OSError, match="disk is full"):
        write_half()
    assert content(tmp_path / "x") == whole("old")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("name", ["fsync", "rename"])
def test_an_error_of_the_disk_leaves_a_whole_folder(name, exchange, tmp_path, monkeypatch):
    write(tmp_path / "x", "old")

    def fails(*args, **kwargs):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, name, fails)
    with contextlib.suppress(OSError):
        write(tmp_path / "x", "new")
    assert content(tmp_path / "x") in (whole("old"), whole("new"))
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".tmp")]


def test_everything_is_on_the_disk_before_names_change(tmp_path, monkeypatch):
    write(tmp_path / "x", "old")
    events = []
    sync, exchange = atomic._sync, atomic._exchange
    monkeypatch.setattr(atomic, "_sync", lambda p: (events.append(p.name), sync(p)))
    monkeypatch.setattr(atomic, "_exchange", lambda a, b: (events.append("!"), exchange(a, b))[1])
    write(tmp_path / "x", "new")
    assert {"a", "b", "sub"} <= set(events[: events.index("!")])
    assert events[events.index("!") + 1] == tmp_path.name


def test_what_a_living_process_writes_is_left_alone(tmp_path):
    theirs = tmp_path / f".x.{os.getppid()}.{os.uname().nodename}.tmp"
    theirs.mkdir()
    write(tmp_path / "x", "new")
    assert theirs.is_dir()


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    write(tmp_path / "target", "old")
    (tmp_path / "link").symlink_to("target")
    write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "target") == whole("new")


def test_a_file_is_not_replaced_by_a_folder(tmp_path):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(FileExistsError, match="x is a file: a folder is to be written there"):
        write(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "mine"


def test_the_previous_folder_is_found_only_where_the_folder_is_gone(tmp_path):
    write(tmp_path / "x.previous", "old")
    assert content(tmp_path / "x") == whole("old")
    write(tmp_path / "x", "new")
    assert existing_folder(tmp_path / "x") == tmp_path / "x"
    assert not Path(tmp_path / "x.previous").exists()


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_a_file_that_only_its_owner_could_read_has_the_mode_of_other_files(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        with atomic_folder(tmp_path / "folder") as folder:
            save_file({"x": torch.zeros(1)}, folder / "x.safetensors")
        with atomic_file(tmp_path / "file") as file:
            save_file({"x": torch.zeros(1)}, file)
    finally:
        os.umask(before)
    for path in (tmp_path / "folder" / "x.safetensors", tmp_path / "file"):
        assert path.stat().st_mode & 0o777 == mode


def test_what_is_left_with_an_odd_name_stops_nobody(tmp_path):
    host = socket.gethostname()
    for name in ("abc", "9" * 30, "", "-1", "\n", "1.2", str(2**63)):
        (tmp_path / f".x.{name}.{host}.tmp").write_text("left")
    with atomic_file(tmp_path / "x") as file:
        file.write_text("new")
    assert (tmp_path / "x").read_text() == "new"
    assert not (tmp_path / f".x.{'9' * 30}.{host}.tmp").exists()  # no process has that number


def test_a_refusal_of_the_system_names_what_is_written_and_not_a_temporary_file(tmp_path):
    refusals = [
        OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "other")),
        OSError("1536 requested and 0 written"),  # numpy's
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 1 vs 2"),
    ]
    for refusal in refusals:
        with pytest.raises(OSError, match=r"device|Input/output") as caught, writing("mine"):
            raise refusal
        assert caught.value.filename == "mine"
    with pytest.raises(FileNotFoundError, match="other"), writing("mine", tmp_path / ".mine.tmp"):
        (tmp_path / "other").read_text()  # an error of reading stays as it is
