"""Rows that a caller has in hand are read like those of a file, and told from others by content."""

import datetime
import decimal
import enum
import functools
import hashlib
import json
import re
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from peft_lightning.data.datamodule import SFTDataModule
from peft_lightning.data.files.plain_values import plain_value
from peft_lightning.data.files.rows_in_hand import RowsInHand
from peft_lightning.data.rows.format_functions import format_name
from processes import in_processes, outcome
from toy_tokenizers import byte_tokenizer

ROWS = [{"prompt": "p" * (i % 7), "completion": f"{i:02d}" + "c" * (i * 5 % 11)} for i in range(22)]
VAL = [{"prompt": "v", "completion": f"{i:02d}"} for i in range(3)]


class MapStyle(torch.utils.data.Dataset):
    """No iterator, and no end for one that indexes it until it fails."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index % len(self.rows)]


class Stream(torch.utils.data.IterableDataset):
    """Can be read once."""

    def __init__(self, rows):
        self.rows = iter(rows)

    def __iter__(self):
        return self.rows


def hub_stream(rows):
    return datasets.Dataset.from_list(rows).to_iterable_dataset()


KINDS = {
    "a list of dicts": list,
    "a tuple of dicts": tuple,
    "a Dataset": datasets.Dataset.from_list,
    "an IterableDataset": hub_stream,
    "a Dataset of torch": MapStyle,
    "an IterableDataset of torch": Stream,
    "a generator": iter,
}


@pytest.fixture
def data(tmp_path):
    """Return a function that makes a DataModule over rows and sets it up."""

    def make(train=ROWS, stage="fit", **options):
        given = {"val": VAL, "tokenizer": byte_tokenizer(), "batch_size": 4}
        cache = str(tmp_path / "cache")
        made = SFTDataModule(train=train, **{**given, "cache_dir": cache, **options})
        made.setup(stage)
        return made

    return make


def tokens(data):
    return [batch["input_ids"].tolist() for batch in data.train_dataloader()]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_in_hand_become_the_batches_of_their_file(data, jsonl, kind):
    of_file = data(jsonl("train.jsonl", ROWS))
    in_hand = data(KINDS[kind](ROWS))
    assert in_hand.sizes == of_file.sizes
    assert tokens(in_hand) == tokens(of_file)
    assert tokens(in_hand) == tokens(of_file)  # a stream is not read twice


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_equal_content_are_tokenized_once_and_resume_each_other(data, kind):
    first, second = data(), data(KINDS[kind](ROWS))
    assert first.data_hash == second.data_hash
    assert first.tokenized_datasets[0].folder == second.tokenized_datasets[0].folder


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_other_content_have_another_hash(data, kind):
    other = [*ROWS[:-1], {**ROWS[-1], "completion": "other"}]
    assert data(KINDS[kind](other)).data_hash != data(KINDS[kind](ROWS)).data_hash
    swapped = [ROWS[1], ROWS[0], *ROWS[2:]]
    assert data(KINDS[kind](swapped)).data_hash != data(KINDS[kind](ROWS)).data_hash


def test_a_dataset_is_told_by_its_content_and_not_by_how_it_was_made(data):
    mapped = [datasets.Dataset.from_list(ROWS).map(lambda row: row) for _ in range(2)]
    made = datasets.Dataset.from_generator(lambda: iter(ROWS))
    hashes = {data(rows).data_hash for rows in (*mapped, made)}
    assert len(hashes) == 1


def test_a_run_resumes_with_equal_rows_only(data):
    first, second = data(), data(datasets.Dataset.from_list(ROWS))
    list(first.train_dataloader())
    second.load_state_dict(first.state_dict())
    third = data(ROWS[:-1])
    with pytest.raises(ValueError, match=r"made with other data: hash .* of data.train, now"):
        third.load_state_dict(first.state_dict())


def test_sources_of_all_kinds_stand_in_one_list(data, jsonl):
    path = jsonl("train.jsonl", ROWS)
    mixed = data([path, Path(path), ROWS[:5], datasets.Dataset.from_list(ROWS[5:]), Stream(VAL)])
    split = mixed._splits["train"]
    assert split.names == [path, path, "data.train[2]", "data.train[3]", "data.train[4]"]
    assert [len(source.rows) for source in split.sources] == [22, 22, 5, 17, 3]


def test_a_path_is_a_file(data, jsonl):
    path = Path(jsonl("train.jsonl", ROWS))
    assert tokens(data(path)) == tokens(data(str(path)))


def test_data_sets_have_shares(data):
    first, second = (datasets.Dataset.from_list(rows) for rows in (ROWS, VAL))
    split = data({first: 1.0, second: 4.0})._splits["train"]
    assert [source.records_per_epoch for source in split.sources] == [22, 12]


def test_splits_are_taken_for_what_they_are_meant(data):
    splits = datasets.DatasetDict(
        {
            "train": datasets.Dataset.from_list(ROWS),
            "validation": datasets.Dataset.from_list(VAL),
        }
    )
    made = data(splits, val=splits)
    assert (made.sizes["train"]["rows"], made.sizes["val"]["rows"]) == (22, 3)
    with pytest.raises(ValueError, match=r"DatasetDict has no split for data.val, only train"):
        data(splits, val=datasets.DatasetDict({"train": splits["train"]}))


def test_several_data_sets_to_validate_on_have_a_name_each(data):
    batches = [b["source"] for b in data(val=[VAL, ROWS]).val_dataloader()]
    assert set(batches) == {"rows", "rows_2"}
    batches = [b["source"] for b in data(val={"old": VAL, "new": Stream(ROWS)}).val_dataloader()]
    assert set(batches) == {"old", "new"}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_in_hand_are_predicted(data, kind):
    made = data(stage="predict", predict=KINDS[kind](VAL))
    assert made.predict_records == VAL
    assert len(made.predict_prompts) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_max_rows_are_read_of_each(data, kind):
    assert data(KINDS[kind](ROWS), max_rows=5).sizes["train"]["rows"] == 5


def endless():
    number = 0
    while True:
        number += 1
        yield {"prompt": "p", "completion": str(number)}


def test_a_stream_without_an_end_is_read_to_max_rows(data, caplog):
    made = data(endless(), max_rows=7)
    assert made.sizes["train"]["rows"] == 7
    assert "data.train: the first 7 rows of the stream are read" in caplog.text


def test_a_stream_that_is_read_whole_says_how_many_rows_it_had(data, caplog):
    data(Stream(ROWS))
    said = "data.train: the whole stream is read, 22 rows; data.max_rows reads fewer"
    assert said in caplog.text


def test_a_malformed_row_is_named_by_its_number(data):
    rows = [*ROWS[:3], {"prompt": "p", "completion": {}}, *ROWS[4:]]
    with pytest.raises(ValueError, match=r"data.train: row 4: .*completion"):
        data(rows)
    with pytest.raises(ValueError, match=r"data.train: row 2: not an object"):
        data([ROWS[0], None])
    with pytest.raises(ValueError, match=r"data.train: row 1: not an object: got int"):
        data(MapStyle([3]))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.endswith("Dataset")])
def test_a_malformed_row_is_left_out_and_counted(data, caplog, kind):
    made = data(KINDS[kind]([*ROWS, {"prompt": "p", "completion": {}}, None]), on_bad_row="skip")
    assert made.sizes["train"]["rows"] == 22
    assert "24 read = 22 kept + " in caplog.text


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "an IterableDataset"])
def test_no_rows_are_an_error(data, kind):
    with pytest.raises(ValueError, match=r"data.train: (no rows; the \w+ is empty|an empty list)"):
        data(KINDS[kind]([]))


class Columns:
    """Stands for nothing that can be read."""


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (Columns(), "data.train must be a path, a list of dicts.*got <.*Columns"),
        (3, "data.train must be a path.*got 3"),
        ([ROWS, 3], r"data.train\[1\] must be a path.*got 3"),
        ([*ROWS, "more.jsonl"], r"rows and paths in one list: make the rows a list of their own"),
        ({"prompt": ["a"], "completion": ["b"]}, "maps columns to values: make rows of them"),
        (b"train.jsonl", "data.train must be a path"),
    ],
)
def test_what_holds_no_rows_is_named(train, said):
    with pytest.raises(ValueError, match=said):
        SFTDataModule(train=train)


def test_a_table_of_pandas_is_told_how_to_become_rows():
    pandas = pytest.importorskip("pandas")
    with pytest.raises(ValueError, match=r"DataFrame of pandas: give datasets.Dataset.from_pandas"):
        SFTDataModule(train=pandas.DataFrame(ROWS))


class Role(enum.Enum):
    USER = "user"


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        ((1, (2.5, None)), [1, [2.5, None]]),
        (np.array([[1, 2]]), [[1, 2]]),
        (torch.tensor([0.5]), [0.5]),
        (np.float32(0.5), 0.5),
        (np.str_("a"), "a"),
        ({Role.USER: Role.USER}, {"user": "user"}),
        (datetime.date(2026, 1, 31), "2026-01-31"),
        (decimal.Decimal("1.50"), "1.50"),
        (True, True),
        (b"a", b"a"),
    ],
)
def test_values_are_those_of_json(value, plain):
    assert plain_value(value) == plain
    assert type(plain_value(value)) is type(plain)


def test_the_hash_of_rows_is_the_same_in_every_process():
    rows = [{"text": "ä", "tags": {"b", "a"}, "image": b"\xff", "size": np.int64(3)}]
    plain = {"text": "ä", "tags": {"set": ["'a'", "'b'"]}, "image": {"bytes": "ff"}, "size": 3}
    line = json.dumps(plain, separators=(",", ":")).encode() + b"\n"
    found = RowsInHand("data.train", rows=rows).fingerprint()
    assert found == [f"rows:{hashlib.sha256(line).hexdigest()}"]


def test_a_value_without_a_content_is_named():
    rows = RowsInHand("data.train", rows=[{"text": "a", "lock": (lambda: None)}])
    with pytest.raises(ValueError, match="row 1 holds a function, whose content cannot be told"):
        rows.fingerprint()


def test_columns_that_a_dataset_hides_stay_hidden(data):
    rows = [{**row, "messages": []} for row in ROWS]
    hidden = datasets.Dataset.from_list(rows).with_format(columns=["prompt", "completion"])
    assert tokens(data(hidden)) == tokens(data())


def test_a_transform_of_a_dataset_is_applied(data):
    def to_rows(batch):
        return {"prompt": batch["q"], "completion": [text.upper() for text in batch["a"]]}

    questions = [{"q": row["prompt"], "a": row["completion"]} for row in ROWS]
    upper = [{**row, "completion": row["completion"].upper()} for row in ROWS]
    transformed = datasets.Dataset.from_list(questions).with_transform(to_rows)
    assert tokens(data(transformed)) == tokens(data(upper))


def shout(row):
    return {"prompt": row["q"], "completion": row["a"].upper()}


QUESTIONS = [{"q": row["prompt"], "a": row["completion"]} for row in ROWS]
SHOUTED = [shout(row) for row in QUESTIONS]


def test_a_function_of_a_module_has_the_name_it_has_in_a_config(data):
    assert format_name(shout) == f"{__name__}.shout"
    assert tokens(data(QUESTIONS, val=QUESTIONS, format=shout)) == tokens(data(SHOUTED))


class Shouting:
    def __init__(self, end):
        self.end = end

    def __call__(self, row):
        return {"prompt": row["q"], "completion": row["a"].upper() + self.end}


def ended(row, end):
    return {"prompt": row["q"], "completion": row["a"].upper() + end}


def nested(end):
    def inner(row):
        return ended(row, end)

    return inner


@pytest.mark.parametrize(
    "make",
    [
        Shouting,
        nested,
        lambda end: functools.partial(ended, end=end),
        lambda end: lambda row: {"prompt": row["q"], "completion": row["a"].upper() + end},
        lambda end: Shouting(end).__call__,
    ],
    ids=["object", "nested function", "partial", "lambda", "method"],
)
def test_a_function_that_no_import_finds_is_told_by_its_code_and_values(data, make):
    row = [{**row, "completion": row["completion"] + "!"} for row in SHOUTED]
    first, again, other = (
        data(QUESTIONS, val=QUESTIONS, format=make(end)) for end in ("!", "!", "?")
    )
    assert tokens(first) == tokens(data(row))
    assert first.data_hash == again.data_hash != other.data_hash


def test_functions_of_other_code_have_other_names():
    names = {
        format_name(function)
        for function in (
            lambda row: row["a"],
            lambda row: row["b"],
            lambda row: row["a"] + "1",
            lambda row: [word for word in row["a"].split()],
            lambda row: [word for word in row["a"].split("-")],
        )
    }
    assert len(names) == 5


def test_a_typed_function_is_told_from_its_next_version():
    versions = []
    for end in ("1", "2", "2"):
        scope = {"__name__": "__main__"}
        exec(  # as a notebook's cell does
            f"END = {end!r}\ndef helper(text):\n    return text + END\n"
            "def form(row):\n    return helper(row['a'])",
            scope,
        )
        versions.append(format_name(scope["form"]))
    assert versions[0] != versions[1] == versions[2]


def test_what_is_no_format_is_named():
    with pytest.raises(ValueError, match="must be a name or a function from a row, got 3"):
        SFTDataModule(train=ROWS, format=3)


def test_an_error_of_a_function_names_it(data):
    def failing(row):
        return row["no such column"]

    message = re.escape(f"data.train: row 1: {__name__}.test_an_error_of_a_function_names_it")
    with pytest.raises(ValueError, match=message + r".*raised KeyError"):
        data(QUESTIONS, val=QUESTIONS, format=failing)


def test_a_chat_template_is_a_path(data, tmp_path):
    file = tmp_path / "template.jinja"
    file.write_text("{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}")
    assert tokens(data(chat_template=file)) == tokens(data(chat_template=str(file)))


def test_processes_with_other_rows_are_refused_all_of_them(base, rows, tmp_path):
    options = {"base": str(base), "rows": str(rows), "rows_of_rank": True}
    in_processes(2, tmp_path, {"differing": options})
    for rank in range(2):
        said = outcome(tmp_path, "differing", rank)["error"]
        assert re.search(r"process 1 on \S+ has other rows than the first one on \S+ \(hash", said)
