"""Data sets of the hub: the forms of their names, and what is asked of `datasets` and the hub."""

import json
import socketserver
import threading

import datasets
import huggingface_hub
import pytest

from files_of_rows import ROWS, lines, places, records
from peft_lightning.data.files.hub_datasets import HubName
from peft_lightning.data.files.sources import Source, find_source
from peft_lightning.process import network

HUB = "https://huggingface.co/datasets/"
NAMES = [  # what is written, and the name, config, split, revision and file that it says
    ("owner/name", ("owner/name",)),
    ("gsm8k", ("gsm8k",)),
    ("owner/name:main", ("owner/name", "main")),
    ("wikitext:wikitext-103-raw-v1", ("wikitext", "wikitext-103-raw-v1")),
    ("owner/name[test]", ("owner/name", None, "test")),
    ("owner/name[train[:100]]", ("owner/name", None, "train[:100]")),
    ("owner/name[train[:10%]]", ("owner/name", None, "train[:10%]")),
    ("owner/name[train[10%:-5%](pct1_dropremainder)]", None),
    ("owner/name[train[-100:]+test[:5%]]", ("owner/name", None, "train[-100:]+test[:5%]")),
    ("owner/name[train_sft]", ("owner/name", None, "train_sft")),
    ("owner/name@v1.0", ("owner/name", None, None, "v1.0")),
    ("owner/name@refs/convert/parquet", ("owner/name", None, None, "refs/convert/parquet")),
    ("owner/name:main@v1[train[:9]]", ("owner/name", "main", "train[:9]", "v1")),
    ("owner/name@v1:main[train]", ("owner/name", "main", "train", "v1")),
    ("hf://datasets/owner/name", ("owner/name",)),
    ("hf://datasets/owner/name[test]", ("owner/name", None, "test")),
    ("hf://datasets/owner/name@v1", ("owner/name", None, None, "v1")),
    ("hf://datasets/owner/name/a/b.jsonl", ("owner/name", None, None, None, "a/b.jsonl")),
    ("hf://datasets/owner/name@v1/*.csv", ("owner/name", None, None, "v1", "*.csv")),
    (HUB + "owner/name", ("owner/name",)),
    (HUB + "owner/name/", ("owner/name",)),
    (HUB + "gsm8k", ("gsm8k",)),
    (HUB + "owner/name?library=datasets#x", ("owner/name",)),
    (HUB + "owner/name[train[:5]]", ("owner/name", None, "train[:5]")),
    (HUB + "owner/name/tree/v1", ("owner/name", None, None, "v1")),
    (HUB + "owner/name/tree/main/data", ("owner/name", None, None, "main", "data")),
    (HUB + "owner/name/blob/main/a%20b.csv", ("owner/name", None, None, "main", "a b.csv")),
    (HUB + "owner/name/resolve/v1/a.csv?download=true", ("owner/name", None, None, "v1", "a.csv")),
    (HUB + "owner/name/viewer/main/test", ("owner/name", "main", "test")),
    (HUB + "owner/name/viewer", ("owner/name",)),
    ("http://hf.co/datasets/owner/name", ("owner/name",)),
]
NO_NAMES = [
    "a/b/c",
    "./name",
    "../owner/name",
    "owner/",
    "",
    "a b",
    "owner/name[train",
    "가/나",
    "/a",
]
MALFORMED = {
    "owner/name:a:b": "two times ':'; a data set of the hub is owner/name, with :config",
    "owner/name[train[:x]]": r"'train\[:x\]' is no split; write \[train\], \[train\[:100\]\]",
    "owner/name[train[:100]": r"'train\[:100' is no split",
    "hf://owner/name": "no address of a data set; a data set of the hub is owner/name",
    "https://huggingface.co/owner/model": "no address of a data set",
    "hf://datasets/owner/name/../../x": "no address of a data set",
    HUB + "owner/name/discussions/3": "no address of a data set",
    "https://example.org/x.jsonl": "an address; download the file and give its path, or a data set",
    "s3://bucket/x.jsonl": "an address; download the file",
}


@pytest.mark.parametrize(("text", "expected"), NAMES)
def test_every_form_of_a_name_is_known(text, expected):
    if expected is None:
        with pytest.raises(ValueError, match="is no split"):
            HubName.parse(text + "]]")
        return
    assert HubName.parse(text) == HubName(*expected)


@pytest.mark.parametrize("text", NO_NAMES)
def test_what_can_only_be_a_path_is_no_name(text):
    assert HubName.parse(text) is None


@pytest.mark.parametrize("text", MALFORMED)
def test_a_malformed_name_is_an_error_with_the_forms(text):
    with pytest.raises(ValueError, match=MALFORMED[text]):
        find_source(text)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A local data set of two splits that `datasets` loads as it does one of the hub."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    rows = [{"a": i, "b": {"c": "x"} if i % 2 else {"d": "y"}} for i in range(10)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "test.jsonl").write_text(json.dumps({"a": -1, "b": {"c": "t"}}))
    return folder, rows


@pytest.mark.parametrize(
    ("purpose", "split", "numbers"),
    [
        (None, None, range(10)),
        ("train", None, range(10)),
        ("test", None, [-1]),
        ("predict", None, [-1]),
        ("train", "test", [-1]),
        ("val", "train[:2]", [0, 1]),
        ("train", "train[50%:]", range(5, 10)),
        ("train", "train[-1:]+test", [9, -1]),
    ],
)
def test_the_split_that_is_named_or_meant_is_loaded(hub, purpose, split, numbers):
    source = Source("x", hub=HubName(str(hub[0]), split=split), purpose=purpose)
    rows = [record for record, _ in source.records()]
    assert [row["a"] for row in rows] == list(numbers)
    assert source.estimated_num_rows() == len(numbers)
    assert len(source.fingerprint()) == 1


def test_rows_of_the_hub_have_no_nulls_that_arrow_put_in(hub):
    source = Source("x", hub=HubName(str(hub[0])))
    assert [record for record, _ in source.records()] == hub[1]
    assert [where for _, where in source.records()][:2] == ["x: row 1", "x: row 2"]
    assert source.summary() == "x: reading the split train of 10 rows"


def test_a_split_that_is_not_there_is_an_error_with_those_that_are(hub):
    source = Source("x", hub=HubName(str(hub[0])), purpose="val")
    with pytest.raises(
        ValueError, match=r"no split for data\.val, only train, test; name .*train\]"
    ):
        list(source.records())


def test_another_split_has_another_fingerprint(hub):
    prints = [
        Source("x", hub=HubName(str(hub[0]), split=split)).fingerprint()
        for split in (None, "train", "train[:2]", "test")
    ]
    assert prints[0] == prints[1]
    assert len({*map(tuple, prints)}) == 3


def test_config_split_and_revision_are_handed_to_datasets(monkeypatch):
    asked = []

    def load_dataset(*args, **options):
        asked.append((args, options))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert records("owner/name:part@v1[test]") == ROWS
    assert asked[0] == (("owner/name", "part"), {"split": "test", "revision": "v1"})
    assert places("gsm8k") == ["gsm8k: row 1", "gsm8k: row 2"]
    assert asked[-1] == (("gsm8k", None), {"split": None, "revision": None})


@pytest.fixture
def cached_repository(tmp_path, monkeypatch):
    """A data set's repository in the hub's cache, with a file, and no network."""
    cache = tmp_path / "hub"
    commit = "0" * 40
    repository = cache / "datasets--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    snapshot = repository / "snapshots" / commit
    (snapshot / "data").mkdir(parents=True)
    (snapshot / "data" / "train.jsonl").write_text(lines(ROWS))
    (snapshot / "data" / "test.jsonl").write_text(lines(ROWS[:1]))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return snapshot


@pytest.mark.parametrize(
    ("name", "split", "rows"),
    [
        ("hf://datasets/owner/name/data/test.jsonl", "train", ROWS[:1]),
        ("hf://datasets/owner/name@main/data", "train", ROWS),
        ("hf://datasets/owner/name/data[test]", None, ROWS[:1]),
        ("hf://datasets/owner/name/data/t*.jsonl", None, ROWS[:1] + ROWS),
        (HUB + "owner/name/blob/main/data/train.jsonl", None, ROWS),
    ],
)
def test_a_file_of_a_repository_is_read_as_a_local_one(cached_repository, name, split, rows):
    assert records(name, split=split) == rows


def test_a_file_that_the_repository_does_not_have_is_an_error(cached_repository):
    with pytest.raises(ValueError, match=r"x\.jsonl: no such file in the data set owner/name"):
        find_source("hf://datasets/owner/name/x.jsonl")


def test_what_is_neither_here_nor_on_the_hub_is_an_error_with_both(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError,
        match=r"owner/name: no such file or folder; nor could a data set of that name be loaded"
        r" from the hub \(it cannot be reached, or .*\); a data set of the hub is owner/name",
    ):
        find_source("owner/name")


def test_both_tries_are_named_in_one_line(monkeypatch):
    def load_dataset(*args, **options):
        raise RuntimeError("no builder\nlong story")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(ValueError, match=r"\(RuntimeError: no builder\)") as error:
        find_source("owner/name")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"^https://\S+: a data set of that name could not be loa"):
        find_source(HUB + "owner/name")


@pytest.fixture
def unreachable(monkeypatch):
    """A hub that hangs up on everybody; the list has an entry for each who called."""
    calls = []

    class HangsUp(socketserver.BaseRequestHandler):
        def handle(self):
            calls.append(self.client_address)

    with socketserver.TCPServer(("127.0.0.1", 0), HangsUp) as server:
        address = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        monkeypatch.setattr("datasets.config.HF_ENDPOINT", address)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        network.hub_answers.cache_clear()
        yield calls
        server.shutdown()
    network.hub_answers.cache_clear()


@pytest.mark.parametrize("name", ["trian", "owner/name", "hf://datasets/owner/name/a.jsonl"])
def test_a_hub_that_cannot_be_reached_is_asked_once_and_said_to_be_so(unreachable, name):
    for _ in range(2):
        with pytest.raises(ValueError, match=r"\(it cannot be reached, or HF_HUB_OFFLINE is set"):
            find_source(name)
    assert len(unreachable) == 1
    assert not huggingface_hub.constants.HF_HUB_OFFLINE
    assert not datasets.config.HF_HUB_OFFLINE


def test_what_the_cache_has_is_read_while_the_hub_cannot_be_reached(
    cached_repository, unreachable, monkeypatch
):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert records("hf://datasets/owner/name/data/test.jsonl") == ROWS[:1]
    assert len(unreachable) == 1
