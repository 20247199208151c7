"""The rows of training, validation and testing: sources given twice, held out, mixed and named."""

import numpy as np
import pytest

from peft_lightning.data.cache import load_or_tokenize
from peft_lightning.data.mixing import Mixture, read_mixture
from peft_lightning.data.options import RowOptions, TokenOptions
from peft_lightning.data.splits import open_splits
from peft_lightning.data.tokens.tokenization import RowTokenizer
from peft_lightning.messages import UserError
from toy_tokenizers import REWRITING, byte_tokenizer


@pytest.fixture
def opened(jsonl, tmp_path):
    """Return a function that opens the splits of a stage, and the lines that it logged."""

    def open_(train=None, val=None, test=None, stage="fit", fraction=None, **options):
        template = options.get("template")
        tokenizer = RowTokenizer(byte_tokenizer(template), None, TokenOptions())
        said, tokenized = [], options.get("tokenized", [])

        def tokenize(source):
            tokenized.append(source.name)
            rows = RowOptions(max_rows=options.get("max_rows"))
            return load_or_tokenize(source, tokenizer, rows, tmp_path / "cache", said.append)

        paths = {"train": train, "val": val, "test": test}
        mixture = options.get("mixture", Mixture())
        splits = open_splits(stage, paths, fraction, tokenize, said.append, {}, mixture)
        return splits, said, tokenized

    return open_


def texts(split, rows):
    """Return the text of each row, as its character codes tell it."""
    tokenizer = byte_tokenizer()
    return [tokenizer.decode(split.dataset[int(row)]["input_ids"][:-1]) for row in rows]


def epoch(split, number=0):
    """Return the texts of an epoch, source by source."""
    return [texts(split, source.rows_of_epoch(0, number)) for source in split.sources]


def file_of(jsonl, name, texts):
    return jsonl(name, [{"text": text} for text in texts])


def test_a_file_that_is_listed_twice_is_read_twice_tokenized_once_and_it_is_said(opened, jsonl):
    a, b = file_of(jsonl, "a.jsonl", "xy"), file_of(jsonl, "b.jsonl", "z")
    splits, said, tokenized = opened([a, b, a], fraction=0)
    assert epoch(splits["train"]) == [["x", "y"], ["z"], ["x", "y"]]
    assert tokenized == [a, b]
    assert len(splits["train"].dataset) == 3  # tokens are loaded once
    assert splits["train"].sizes["rows"] == 3
    assert f"data.train: {a} is given 2 times, and read as often" in said


def test_a_copy_of_a_file_is_known_by_its_content(opened, jsonl):
    a, copy = file_of(jsonl, "a.jsonl", "xy"), file_of(jsonl, "copy.jsonl", "xy")
    splits, said, _ = opened([a, copy], fraction=0)
    assert epoch(splits["train"]) == [["x", "y"], ["x", "y"]]
    assert f"data.train: {a}, {copy} are one source given 2 times, and read as often" in said


def test_no_row_is_held_out_and_trained_on_through_the_second_mention_of_its_file(opened, jsonl):
    letters = [chr(97 + i) for i in range(20)]
    a, b = file_of(jsonl, "a.jsonl", letters), file_of(jsonl, "b.jsonl", map(str, range(10)))
    splits, _, _ = opened([a, b, a], fraction=0.3)
    val, train = splits["val"], splits["train"]
    held_out = texts(val, val.rows)
    assert len(held_out) == len(set(held_out)) == 9
    left_a, left_b = (sorted(set(rows) - set(held_out)) for rows in (letters, map(str, range(10))))
    assert epoch(train) == [left_a, left_b, left_a]
    assert val.labels == ["a", "b"]


@pytest.mark.parametrize(
    "train", [{"a": 0.7, "b": 0.3}, {"a": 2, "b": 0.5}, {"a": 1, "b": 1}], ids=str
)
def test_the_same_part_of_each_source_is_held_out_whatever_its_number(opened, jsonl, train):
    paths = {
        file_of(jsonl, f"{name}.jsonl", [f"{name}{i}" for i in range(n)]): train[name]
        for name, n in (("a", 360), ("b", 60))
    }
    splits, _, _ = opened(paths, fraction=0.1, mixture=read_mixture(paths))
    assert [len(source.rows) for source in splits["val"].sources] == [36, 6]
    assert [len(source.rows) for source in splits["train"].sources] == [324, 54]
    plain, _, _ = opened(list(paths), fraction=0.1)
    assert splits["val"].rows.tolist() == plain["val"].rows.tolist()


def test_shares_are_of_the_rows_that_are_left_to_train_on(opened, jsonl):
    paths = {
        file_of(jsonl, "big.jsonl", map(str, range(360))): 0.7,
        file_of(jsonl, "small.jsonl", map(str, range(60))): 0.3,
    }
    splits, said, _ = opened(paths, fraction=0.1, mixture=read_mixture(paths))
    # 324 rows are 0.7 of 462.9, of which 0.3 are 138.9
    assert [len(rows) for rows in epoch(splits["train"])] == [324, 139]
    (table,) = [line for line in said if line.startswith("training source")]
    numbers = [line.split()[1:6] for line in table.splitlines()[1:]]
    assert numbers == [["324", "324", "1.00", "x", "70.0%"], ["54", "139", "2.57", "x", "30.0%"]]


def test_a_single_source_that_is_read_once_has_no_table(opened, jsonl):
    _, said, _ = opened(file_of(jsonl, "a.jsonl", "xy"), fraction=0)
    assert not [line for line in said if "rows an epoch" in line]


def test_a_source_of_which_all_rows_are_held_out_is_an_error(opened, jsonl):
    paths = [file_of(jsonl, "a.jsonl", "abcdefghij"), file_of(jsonl, "b.jsonl", "z")]
    with pytest.raises(UserError, match=r"b\.jsonl: all of its rows are held out .* lower data\.v"):
        opened(paths, fraction=0.8)


def test_few_held_out_rows_are_of_the_largest_sources(opened, jsonl):
    paths = [file_of(jsonl, "a.jsonl", "ab"), file_of(jsonl, "b.jsonl", map(str, range(18)))]
    splits, _, _ = opened(paths, fraction=None)  # 5 % of 20 rows is one
    assert texts(splits["val"], splits["val"].rows)[0].isdigit()
    assert splits["val"].labels == []  # one source: val/loss is its loss


def test_a_missing_file_is_found_before_any_is_tokenized_if_the_stage_needs_it(opened, jsonl):
    a = file_of(jsonl, "a.jsonl", "xy")
    missing = a.replace("a.jsonl", "b.jsonl")
    tokenized = []
    with pytest.raises(UserError, match=r"b\.jsonl: no such file"):
        opened(a, val=missing, tokenized=tokenized)
    assert tokenized == []
    assert opened(missing, val=a, stage="validate")[0].keys() == {"val"}
    assert opened(a, test=missing, fraction=0)[0].keys() == {"train"}


def test_evaluation_sources_are_named_by_the_mapping_or_by_their_files(opened, jsonl):
    a, b = file_of(jsonl, "a.jsonl", "xy"), file_of(jsonl, "b.jsonl", "z")
    labels = {
        "a path": (a, []),
        "one name": ({"chat": a}, ["chat"]),
        "names": ({"chat": a, "code v1.5": b}, ["chat", "code v1.5"]),
        "paths": ([a, b], ["a", "b"]),
        "a path twice": ([a, a], ["a", "a_2"]),
    }
    for given, expected in labels.values():
        splits, _, _ = opened(a, val=given)
        assert splits["val"].labels == expected
        splits, _, _ = opened(test=given, stage="test")
        assert splits["test"].labels == expected
        assert len(splits["test"].sources) == max(1, len(expected))


def test_a_mapping_of_an_evaluation_holds_paths(opened, jsonl):
    a = file_of(jsonl, "a.jsonl", "xy")
    with pytest.raises(UserError, match=r"data\.val maps names to paths, .* got \{.*: 0\.5\}"):
        opened(a, val={a: 0.5})
    with pytest.raises(UserError, match=r"data\.test: an empty list of data files"):
        opened(test={}, stage="test")


def test_validation_rows_that_are_trained_on_are_said(opened, jsonl):
    a, b = file_of(jsonl, "a.jsonl", "xy"), file_of(jsonl, "b.jsonl", "z")
    line = f"data.val: {b} is trained on too, so val/loss is not that of unseen rows"
    assert line in opened([a, b], val=b)[1]
    assert not [said for said in opened(a, val=b)[1] if "trained on too" in said]


def test_the_numbers_are_part_of_what_a_checkpoint_compares(opened, jsonl):
    a, b = file_of(jsonl, "a.jsonl", "xy"), file_of(jsonl, "b.jsonl", "z")
    found = [
        opened({a: x, b: y}, fraction=0, mixture=read_mixture({a: x, b: y}, mix))[0]["train"]
        for x, y, mix in [(0.7, 0.3, "auto"), (0.7, 0.3, "repeat"), (0.5, 0.5, "auto")]
    ]
    fingerprints = [str(split.fingerprint) for split in found]
    assert len(set(fingerprints)) == 3


def test_max_rows_are_the_first_of_each_source(opened, jsonl):
    a, b = file_of(jsonl, "a.jsonl", "vwxyz"), file_of(jsonl, "b.jsonl", "ab")
    splits, said, _ = opened([a, b], fraction=0, max_rows=3)
    assert epoch(splits["train"]) == [["v", "w", "x"], ["a", "b"]]
    assert [line for line in said if "data.max_rows" in line] == [
        f"{a}: the first 3 rows are read, as data.max_rows says"
    ]
    assert np.array_equal(opened([a, b], fraction=0)[0]["train"].lengths, [2] * 7)


def test_all_sequences_of_a_row_are_held_out_or_none(opened, jsonl):
    """A template that rewrites earlier turns makes a sequence of each turn."""

    def conversation(i):
        turns = [f"q{i}", f"<think>t{i}</think>a{i}"] * (1 + i % 3)
        roles = ("user", "assistant")
        return [{"role": roles[j % 2], "content": text} for j, text in enumerate(turns)]

    paths = [
        jsonl(name, [{"messages": conversation(i)} for i in numbers])
        for name, numbers in (("a.jsonl", range(30)), ("b.jsonl", range(30, 40)))
    ]
    splits, said, _ = opened(paths, fraction=0.2, template=REWRITING)
    train, val = splits["train"], splits["val"]
    assert len(train.dataset) > 40  # sequences
    assert (train.sizes["rows"], val.sizes["rows"]) == (32, 8)
    line = f"no data.val: 8 of 40 rows of {', '.join(paths)} are held out for validation"
    assert line in "".join(said)
    numbers = [
        {text.partition("user\nq")[2].partition("<")[0] for text in texts(split, split.rows)}
        for split in (train, val)
    ]
    assert [len(found) for found in numbers] == [32, 8]
    assert not numbers[0] & numbers[1]
    assert sorted({*train.rows, *val.rows}) == list(range(len(train.dataset)))
    assert [len(np.unique(val.records[source.rows])) for source in val.sources] == [6, 2]


def test_fewer_rows_to_train_on_are_the_same_for_every_seed_and_leave_validation_as_it_is(
    opened, jsonl
):
    letters = [chr(97 + i) for i in range(20)]
    a, b = file_of(jsonl, "a.jsonl", letters), file_of(jsonl, "b.jsonl", "12")

    def split(count):
        mixture = read_mixture([a, b], max_rows=count)
        splits, _, _ = opened([a, b], fraction=0.2, mixture=mixture)
        of_source = epoch(splits["train"])
        return of_source, texts(splits["val"], splits["val"].rows), splits["train"]

    (all_rows, _), held_out, whole = split(None)
    (some, both), val, limited = split(9)
    (few, _), also_val, _ = split(4)
    assert held_out == val == also_val
    assert (len(all_rows), len(some), len(few), len(both)) == (16, 9, 4, 2)
    assert set(few) < set(some) < set(all_rows)
    assert sorted(some) != sorted(all_rows)[:9]  # not the first ones of a file that may be sorted
    assert limited.fingerprint != whole.fingerprint  # a run does not go on with another number
    with pytest.raises(UserError, match="max_train_rows must be at least 1, got 0"):
        split(0)
