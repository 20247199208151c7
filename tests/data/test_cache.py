import json
import multiprocessing
import os
import pickle
import shutil
import socket
import time
from pathlib import Path

import numpy as np
import pytest

from peft_lightning.data import cache
from peft_lightning.data.cache import default_cache_dir, load_or_tokenize
from peft_lightning.data.files.sources import find_source
from peft_lightning.data.options import RowOptions, TokenOptions
from peft_lightning.data.tokenized_dataset import TokenizedDataset, row_checksum
from peft_lightning.data.tokens.tokenization import RowTokenizer
from peft_lightning.files import sealed_folder
from toy_tokenizers import CHATML, byte_tokenizer

ROWS = [{"prompt": "p" * n, "completion": "c" * n} for n in range(1, 8)]


@pytest.fixture
def make(tmp_path):
    """Return a function that tokenizes a file; what it is told is in ``make.said``."""

    def make(path, format="auto", on_bad_row="error", tokenizer=None, template=None, **options):
        options = TokenOptions(**options)
        row_tokenizer = RowTokenizer(tokenizer or byte_tokenizer(), template, options)
        said.clear()
        source = find_source(path)
        return load_or_tokenize(
            source, row_tokenizer, RowOptions(format, on_bad_row), tmp_path / "cache", said.append
        )

    said = make.said = []
    return make


@pytest.fixture
def built(monkeypatch):
    """The number of times that anything was tokenized."""
    calls = []
    original = cache._tokenize_into
    monkeypatch.setattr(cache, "_tokenize_into", lambda *args: calls.append(1) or original(*args))
    return calls


def test_rows_come_back_as_they_were_tokenized(make, jsonl, monkeypatch):
    monkeypatch.setattr(cache, "ROWS_PER_CHUNK", 3)  # several writes
    dataset = make(jsonl("x.jsonl", ROWS))
    assert len(dataset) == 7
    eos = byte_tokenizer().eos_token_id
    p, c = byte_tokenizer().convert_tokens_to_ids(["p", "c"])
    for n in range(1, 8):
        row = dataset[n - 1]
        assert row["input_ids"].tolist() == [p] * n + [c] * n + [eos]
        assert row["labels"].tolist() == [-100] * n + [c] * n + [eos]
        assert row["labels"].dtype == row["input_ids"].dtype == np.int64
    assert dataset.lengths.tolist() == [2 * n + 1 for n in range(1, 8)]
    assert dataset.num_loss_tokens.tolist() == [n + 1 for n in range(1, 8)]


def test_files_are_plain_numpy_files(make, jsonl):
    folder = make(jsonl("x.jsonl", ROWS)).folder
    shapes = {p.stem: np.load(p).shape for p in folder.glob("*.npy")}
    assert shapes == {
        "input_ids": (63,),
        "loss_weights": (63,),
        "offsets": (8,),
        "num_loss_tokens": (7,),
        "records": (7,),
        "row_checksums": (7,),
    }
    assert np.load(folder / "input_ids.npy").dtype == np.int32


def test_the_same_rows_are_tokenized_once_and_announced_each_time(make, jsonl, built):
    path = jsonl("x.jsonl", ROWS)
    make(path)
    first = list(make.said)
    make(path)
    make(jsonl("same_content.jsonl", ROWS))
    assert len(built) == 1
    assert first == [
        f"{path}: format prompt_completion (columns: prompt, completion)",
        f"{path}: 7 read = 7 kept",
    ]
    assert make.said[1].endswith("same_content.jsonl: 7 read = 7 kept")


def test_whatever_decides_the_tokens_makes_another_cache(make, jsonl, built, tmp_path, monkeypatch):
    path = jsonl("x.jsonl", ROWS)
    make(path)
    make(path, train_on="all")
    make(path, max_length=9)
    make(path, max_length=9, truncation="truncate")
    make(path, on_bad_row="skip")
    make(path, template=CHATML)
    make(path, tokenizer=byte_tokenizer(eos_token="<eos>"))
    make(path, format="prompt_completion")
    make(jsonl("y.jsonl", ROWS[:-1]))
    assert len(built) == 9
    monkeypatch.setattr(cache, "VERSION", 0)
    make(path)
    assert len(built) == 10


def test_a_changed_function_of_the_users_makes_another_cache(
    make, jsonl, built, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path = jsonl("x.jsonl", ROWS)
    module = tmp_path / "my_rows.py"
    for i, code in enumerate(["record['prompt']", "record['completion'] * 2"]):
        name = f"my_rows{i}"
        module = tmp_path / f"{name}.py"
        module.write_text(f"def row(record):\n    return {code}\n")
        make(path, format=f"{name}.row")
        make(path, format=f"{name}.row")
        assert len(built) == i + 1


@pytest.mark.parametrize("damage", ["cut", "missing", "meta", "torn meta", "longer"])
def test_a_damaged_cache_is_made_anew(make, jsonl, built, damage):
    path = jsonl("x.jsonl", ROWS)
    dataset = make(path)
    expected = [row["labels"].tolist() for row in map(dataset.__getitem__, range(7))]
    file = dataset.folder / ("meta.json" if "meta" in damage else "input_ids.npy")
    content = file.read_bytes()
    match damage:
        case "cut" | "torn meta":
            file.write_bytes(content[: len(content) // 2])
        case "longer":
            file.write_bytes(content + b"\0\0\0\0")
        case _:
            file.unlink()
    dataset = make(path)
    assert len(built) == 2
    assert [row["labels"].tolist() for row in map(dataset.__getitem__, range(7))] == expected


def test_a_cache_that_failed_half_way_leaves_nothing(make, jsonl, tmp_path):
    path = jsonl("x.jsonl", [*ROWS, {"prompt": "p", "completion": ""}])
    with pytest.raises(ValueError, match="empty completion"):
        make(path)
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".lock"]


def test_what_a_killed_process_left_is_removed(make, jsonl, tmp_path):
    path = jsonl("x.jsonl", ROWS)
    folder = make(path).folder
    # a process number that no Linux gives
    stale = folder.with_name(f".{folder.name}.999999999.{socket.gethostname()}.tmp")
    folder.rename(stale)
    make(path)
    assert folder.exists()
    assert not stale.exists()


def test_a_bad_row_is_an_error_that_names_file_line_and_reason(make, jsonl):
    path = jsonl("x.jsonl", [*ROWS, {"prompt": "p"}])
    with pytest.raises(
        ValueError, match=r"x\.jsonl:8: no column 'completion': .*Fix the row, or set on_bad_row"
    ):
        make(path)


def test_skipped_rows_are_counted_by_reason_and_the_totals_add_up(make, jsonl):
    bad = [{"prompt": "p"}, {"prompt": "p", "completion": ""}, "{oops", {"prompt": "p"}]
    path = jsonl("x.jsonl", [*ROWS, *bad])
    make(path, on_bad_row="skip", max_length=13)
    assert make.said[1] == (
        f"{path}: 11 read = 6 kept + no column 'completion': 2 + longer than max_length 13: 1"
        " + empty completion: 1 + invalid JSON: 1; max_length 15 would keep all rows"
    )


def test_rows_dropped_for_their_length_are_no_error_and_are_counted(make, jsonl):
    path = jsonl("x.jsonl", ROWS)
    make(path, max_length=4, truncation="truncate")
    left = "7 read = 3 kept (2 of them truncated) + no token in the loss within max_length 4: 4; "
    assert left in make.said[1]
    make(path, max_length=9)
    assert ": 7 read = 4 kept + longer than max_length 9: 3; max_length 15 " in make.said[1]


def test_a_row_that_must_not_be_too_long_is_an_error_even_where_bad_rows_are_skipped(make, jsonl):
    path = jsonl("x.jsonl", ROWS)
    with pytest.raises(ValueError, match=r"x\.jsonl:5: longer than max_length 9: 11 tokens; r"):
        make(path, max_length=9, truncation="error", on_bad_row="skip")


def test_no_row_left_is_an_error_with_the_counts(make, jsonl):
    path = jsonl("x.jsonl", [{"prompt": "p", "completion": ""}] * 3)
    with pytest.raises(ValueError, match=r"no row is left .*: 3 read = 0 kept \+ empty completion"):
        make(path, on_bad_row="skip")


def test_the_format_is_told_from_the_first_well_formed_row(make, jsonl):
    path = jsonl("x.jsonl", ["{oops", "[]", *ROWS])
    assert len(make(path, on_bad_row="skip")) == 7
    assert make.said[1].endswith("9 read = 7 kept + invalid JSON: 1 + not an object: 1")
    with pytest.raises(ValueError, match=r"x\.jsonl:1: invalid JSON"):
        make(path)
    with pytest.raises(ValueError, match=r"1 read = 0 kept \+ invalid JSON: 1"):
        make(jsonl("y.jsonl", ["{oops"]), on_bad_row="skip")


def _tokenize(path, folder, barrier, results):
    source, said = find_source(path), []
    original = cache._tokenize_into

    def slowly(*args):
        time.sleep(0.3)
        results.put("made")
        original(*args)

    cache._tokenize_into = slowly
    barrier.wait()
    dataset = load_or_tokenize(
        source, RowTokenizer(byte_tokenizer()), RowOptions(), folder, said.append
    )
    results.put(len(dataset))


def test_one_process_tokenizes_and_the_others_wait(jsonl, tmp_path):
    context = multiprocessing.get_context("fork")
    path, results, barrier = jsonl("x.jsonl", ROWS), context.Queue(), context.Barrier(3)
    processes = [
        context.Process(target=_tokenize, args=(path, tmp_path / "cache", barrier, results))
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    outcomes = [results.get(timeout=30) for _ in range(4)]
    for process in processes:
        process.join(timeout=30)
        assert process.exitcode == 0
    assert sorted(outcomes, key=str) == [7, 7, 7, "made"]


def _as_nobody(work, results):
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    try:
        results.put(work())
    except Exception as error:
        results.put(f"{type(error).__name__}: {error}")


def as_nobody(work):
    """Return what a function returns to another user, or its error."""
    forking = multiprocessing.get_context("fork")
    results = forking.SimpleQueue()
    process = forking.Process(target=_as_nobody, args=(work, results))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    return results.get()


@pytest.fixture
def shared(make, jsonl, tmp_path):
    """A sticky cache folder in which this user has made an entry; rows that all can read."""
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    file = jsonl("x.jsonl", ROWS)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o005 == 0o005:
            break
        folder.chmod(0o755)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o1777)
    make(file)
    [entry] = (f for f in (tmp_path / "cache").iterdir() if f.is_dir())
    return entry, lambda: len(make(file))


@pytest.mark.parametrize("way", ["readable", "closed", "damaged", "locked"])
def test_users_of_one_cache_folder_are_not_in_each_others_way(shared, way):
    entry, work = shared
    if way == "closed":  # made under umask 077
        entry.chmod(0o700)
    elif way == "damaged":
        (entry / "meta.json").unlink()
    elif way == "locked":
        shutil.rmtree(entry)  # its lock is left
        Path(f"{entry}.lock").touch(0o644)
    assert as_nobody(work) == len(ROWS)
    own = [f for f in entry.parent.iterdir() if f.is_dir() and f.name.endswith("-65534")]
    assert len(own) == (way != "readable")


def test_a_cache_folder_that_cannot_be_written_is_one_line_with_its_option(shared):
    entry, work = shared
    entry.parent.chmod(0o755)
    assert as_nobody(work) == len(ROWS)  # it is there
    shutil.rmtree(entry)
    said = as_nobody(work)
    assert said.startswith(f"UserError: the cache folder {entry.parent} cannot be written: ")
    assert said.endswith("give data.cache_dir a folder of your own")


def test_a_worker_maps_the_files_itself(make, jsonl):
    dataset = make(jsonl("x.jsonl", ROWS))
    sent = pickle.dumps(dataset)
    assert len(sent) < 3000
    assert pickle.loads(sent)[3]["labels"].tolist() == dataset[3]["labels"].tolist()


def test_a_folder_that_is_no_cache_says_so(tmp_path):
    with pytest.raises(ValueError, match="not a complete token cache"):
        TokenizedDataset(tmp_path)


def test_the_cache_folder_follows_the_users_setting(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "peft_lightning" / "tokens"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "peft_lightning" / "tokens"


def test_reading_every_row_does_not_hold_the_file_in_memory(tmp_path):
    rows, length = 64, 2**17  # 32 MiB of token ids
    arrays = {
        "input_ids": np.arange(rows * length, dtype="<i4"),
        "loss_weights": np.ones(rows * length, dtype="<f4"),
        "offsets": np.arange(rows + 1, dtype="<i8") * length,
        "num_loss_tokens": np.full(rows, length, dtype="<i4"),
        "records": np.arange(rows, dtype="<i8"),
    }
    parts = zip(*(np.split(arrays[n], rows) for n in ("input_ids", "loss_weights")), strict=True)
    arrays["row_checksums"] = np.array([row_checksum(*part) for part in parts], dtype="<u4")
    with sealed_folder(tmp_path / "cache") as folder:
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
        sizes = {name: (folder / f"{name}.npy").stat().st_size for name in arrays}
        meta = {"name": "cache", "tokens": rows * length, "sizes": sizes}
        (folder / "meta.json").write_text(json.dumps(meta))
    del arrays, parts, array
    dataset = TokenizedDataset(tmp_path / "cache")

    def mapped():  # KiB of file pages in this process
        status = Path("/proc/self/status").read_text()
        return int(status.partition("RssFile:")[2].split()[0])

    before = mapped()
    for i, row in enumerate(dataset):
        assert row["input_ids"][0] == i * length
    assert mapped() - before < 8 * 1024
