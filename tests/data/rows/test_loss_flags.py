"""Flags of the loss, each with the meaning that the tool documents which it comes from."""

import pytest

from peft_lightning.data.options import RowOptions
from peft_lightning.data.records import DroppedRowError, Finding, RowError
from peft_lightning.data.rows.conversations import PlainText
from peft_lightning.data.rows.format_detection import detect_format
from peft_lightning.data.rows.formats import FORMATS
from peft_lightning.data.rows.loss_flags import combined_weight, parse_flag
from peft_lightning.data.rows.row_parser import RowParser

USER = {"role": "user", "content": "q"}


def parse(record, **options):
    options = RowOptions(**options)
    return RowParser(detect_format(record, "x.jsonl", options), options).row(record)


def weights(record):
    row = parse(record)
    return [row.weight(i) for i in range(len(row.messages))]


@pytest.mark.parametrize("form", ["messages", "conversations"])
@pytest.mark.parametrize(
    ("flag", "value", "weight"),
    [
        ("weight", 0, 0),  # OpenAI
        ("weight", 1, 1),
        ("weight", 0.5, 0.5),
        ("train", False, 0),  # axolotl
        ("train", True, 1),
        ("training", False, 0),
        ("loss", False, 0),  # ms-swift
        ("loss", True, 1),
        ("loss", 0, 0),
        ("loss_scale", 0.3, 0.3),
        ("loss_scale", 2, 2),
        ("masked", True, 0),  # torchtune
        ("masked", False, 1),
        ("mask", 1, 0),
        ("mask", 0, 1),
        ("ignore", True, 0),
        ("trainable", False, 0),
        ("loss_weight", 0.0, 0),
        ("loss_mask", 0, 0),
        ("train", "false", 0),
        ("train", "True", 1),
        ("weight", "0", 0),
        ("weight", "0.25", 0.25),
        ("mask", "1", 0),
        ("weight", None, 1),
    ],
)
def test_a_flag_of_a_turn_is_its_weight_in_the_loss(form, flag, value, weight):
    role, content = {"messages": ("role", "content"), "conversations": ("from", "value")}[form]
    turns = [
        {role: "user", content: "q1"},
        {role: "assistant", content: "a1", flag: value},
        {role: "user", content: "q2"},
        {role: "assistant", content: "a2"},
    ]
    assert weights({form: turns}) == [0, weight, 0, 1]
    assert parse({form: turns}).messages[1] == {"role": "assistant", "content": "a1"}


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("train", "maybe"),
        ("train", [1]),
        ("train", {}),
        ("weight", -1),
        ("weight", float("nan")),
        ("weight", float("inf")),
        ("weight", "nan"),
        ("weight", 10**400),
        ("mask", 0.5),
        ("mask", 2),
    ],
)
def test_a_flag_without_a_meaning_is_an_error(flag, value):
    with pytest.raises(RowError, match=f"a flag of the loss has no meaning: {flag}: .*write true"):
        parse_flag(flag, value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"train": False, "weight": 1}, "train: False and weight: 1"),
        ({"weight": 0.5, "mask": 1}, "weight: 0.5 and mask: 1"),
        ({"loss": True, "ignore": True}, "loss: True and ignore: True"),
        ({"weight": 0.5, "loss_scale": 2}, "weight: 0.5 and loss_scale: 2"),
    ],
)
def test_flags_that_contradict_each_other_are_an_error_that_names_both(flags, message):
    with pytest.raises(RowError, match=f"contradicting flags of the loss: {message}; keep"):
        combined_weight(flags)


@pytest.mark.parametrize(
    ("flags", "weight"),
    [
        ({}, None),
        ({"train": None}, None),
        ({"train": True, "weight": 0.5}, 0.5),
        ({"train": True, "mask": False}, 1),
        ({"train": False, "mask": True, "weight": 0}, 0),
        ({"weight": 0.5, "loss_scale": 0.5}, 0.5),
        ({"weight": 1, "loss_scale": 0.5}, 0.5),
    ],
)
def test_flags_that_agree_give_one_weight(flags, weight):
    assert combined_weight(flags) == weight


def test_a_flag_that_trains_a_users_or_tools_turn_is_a_finding_and_has_no_effect():
    answer = {"role": "assistant", "content": "a", "weight": 1}
    row = parse({"messages": [{**USER, "weight": 1}, answer]})
    assert row.findings == (Finding("flag on a turn that is not the assistant's", "weight"),)
    assert row.weights is None
    assert parse({"messages": [{**USER, "weight": 0, "mask": True}, answer]}).findings == ()
    part = {"type": "text", "text": "q", "train": True}
    parts = parse({"messages": [{"role": "user", "content": [part]}, answer]})
    assert [f.subject for f in parts.findings] == ["content"]


@pytest.mark.parametrize(
    ("parts", "turn", "expected", "weight"),
    [
        ([("BAD ", False), ("GOOD", None)], {}, [("BAD ", 0), ("GOOD", 1)], 1),
        ([("BAD ", False), ("GOOD", True)], {"train": True}, [("BAD ", 0), ("GOOD", 1)], 1),
        ([("a", 0.5), ("b", None)], {"weight": 0.5}, [("a", 0.25), ("b", 0.5)], 0.5),
        ([("a", False), ("b", False), ("c", True)], {}, [("ab", 0), ("c", 1)], 1),
        ([("a", False), ("b", False)], {}, None, 0),
        ([("a", 0.5), ("b", 0.5)], {}, None, 0.5),
        ([("a", False), ("b", None)], {"weight": 0}, None, 0),
    ],
)
def test_a_part_of_a_message_has_a_weight_of_its_own(parts, turn, expected, weight):
    content = [{"type": "text", "text": t, "train": f} for t, f in parts]
    other = {"role": "assistant", "content": "a"}
    row = parse(
        {"messages": [USER, {"role": "assistant", "content": content, **turn}, USER, other]}
    )
    assert row.messages[1]["content"] == "".join(text for text, _ in parts)
    assert row.parts.get(1) == expected
    assert row.weight(1) == weight


def test_a_part_in_the_loss_of_a_turn_that_is_not_is_an_error():
    content = [{"type": "text", "text": "a", "train": True}, {"type": "text", "text": "b"}]
    turns = [USER, {"role": "assistant", "content": content, "weight": 0}]
    with pytest.raises(RowError, match="contradicting flags of the loss: weight: 0 and those of"):
        parse({"messages": turns})
    content[0]["train"] = content[1]["train"] = False
    with pytest.raises(RowError, match="contradicting flags of the loss: weight: 1 and those of"):
        parse({"messages": [USER, {**turns[1], "weight": 1}]})


# axolotl's documentation, "Fine-grained control of training": both offsets inclusive
DETAIL = [
    {"begin_offset": 0, "end_offset": 8, "train": False},
    {"begin_offset": 9, "end_offset": 18, "train": True},
    {"begin_offset": 19, "end_offset": 30, "train": False},
]


@pytest.mark.parametrize("key", ["train_detail", "training_detail"])
def test_axolotls_train_detail_gives_weights_to_characters(key):
    answer = {"from": "assistant", "value": "I'm doing very well, thank you!", key: DETAIL}
    row = parse({"conversations": [{"from": "human", "value": "How are you?"}, answer]})
    assert row.parts[1] == [("I'm doing", 0), (" very well", 1), (", thank you!", 0)]
    assert row.findings == ()


def test_what_train_detail_does_not_cover_is_not_in_the_loss():
    span = {"begin_offset": 1, "end_offset": 2, "train": True}
    turns = [USER, {"role": "assistant", "content": "abcd", "train": True, "train_detail": [span]}]
    assert parse({"messages": turns}).parts[1] == [("a", 0), ("bc", 1), ("d", 0)]


@pytest.mark.parametrize(
    ("detail", "message"),
    [
        ("x", "train_detail are not JSON"),
        ({"a": 1}, "train_detail is not a list: got dict; write"),
        ([{"begin_offset": 0, "end_offset": 4, "train": True}], "no span of the text.*inclusive"),
        ([{"begin_offset": 2, "end_offset": 1, "train": True}], "no span of the text"),
        ([{"begin_offset": 0, "end_offset": 1}], "no span of the text"),
        ([{"begin_offset": 0, "end_offset": 1, "train": 1}] * 2, "overlap: at character 0"),
        ([3], "no span of the text"),
    ],
)
def test_a_malformed_train_detail_is_an_error(detail, message):
    turns = [USER, {"role": "assistant", "content": "abcd", "train_detail": detail}]
    with pytest.raises(RowError, match=message):
        parse({"messages": turns})


TWO = [USER, {"role": "assistant", "content": "a"}, USER, {"role": "assistant", "content": "b"}]


def test_a_rows_loss_mask_has_a_flag_for_each_message():
    assert weights({"messages": TWO, "loss_mask": [0, 0, 0, 1]}) == [0, 0, 0, 1]
    assert weights({"messages": TWO, "loss_mask": "[0, 0.5, 0, 1]"}) == [0, 0.5, 0, 1]
    assert weights({"prompt": "q", "completion": "a", "loss_mask": [0, 0.5]}) == [0, 0.5]
    with pytest.raises(RowError, match="loss_mask does not fit the messages: 2 values for 4 mess"):
        parse({"messages": TWO, "loss_mask": [0, 1]})
    with pytest.raises(RowError, match="contradicting flags of the loss"):
        parse({"messages": [USER, {**TWO[1], "weight": 0}], "loss_mask": [0, 1]})


@pytest.mark.parametrize("flag", ["weight", "sample_weight", "loss_weight", "loss_scale"])
def test_a_rows_weight_multiplies_the_weights_of_its_turns(flag):
    turns = [USER, {**TWO[1], "weight": 0.5}, USER, {**TWO[1], "weight": 0}, USER, TWO[1]]
    assert weights({"messages": turns, flag: 0.5}) == [0, 0.25, 0, 0, 0, 0.5]
    plain = parse({"prompt": "q", "completion": "a", flag: "2"}).plain
    assert plain == PlainText([("q", 0), ("a", 2)])
    assert parse({"text": "a", flag: 3}) == PlainText([("a", 3)])


def test_a_row_of_weight_zero_is_left_out():
    with pytest.raises(DroppedRowError, match="weight 0: the row's train say so"):
        parse({"messages": TWO, "train": False})
    with pytest.raises(DroppedRowError, match="weight 0: the row's weight say so"):
        parse({"text": "a", "weight": 0.0})


@pytest.mark.parametrize("column", ["label", "kto_tag"])
@pytest.mark.parametrize("form", [{"prompt": "p", "completion": "c"}, {"messages": TWO}])
def test_a_kto_row_is_trained_on_only_if_its_answer_is_good(form, column):
    for good in (True, 1, "True", "1"):
        assert parse({**form, column: good}).findings == ()
    for bad in (False, 0, "false", "0"):
        with pytest.raises(DroppedRowError, match=f"{column} is false"):
            parse({**form, column: bad})
    with pytest.raises(DroppedRowError, match=f"{column} is false"):
        parse({**form, column.title(): False})
    assert parse({**form, column: "sports"}).findings == (Finding("unused column", column),)


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([("<s>", False), ("a", True)], [("<s>", 0), ("a", 1)]),
        ([("a", 1), ("b", 0.5), ("c", 0)], [("a", 1), ("b", 0.5), ("c", 0)]),
    ],
)
def test_axolotls_segments_are_in_the_loss_if_their_label_is_true(pieces, expected):
    row = FORMATS["segments"]({"segments": [{"text": t, "label": w} for t, w in pieces]})
    assert row == PlainText(expected)


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([], r"not a list of segments: got \[\]; write"),
        ("x", "segments are not JSON"),
        ([{"label": True}], "a segment without text"),
        ([{"text": "a"}], "a segment without a label"),
        ([{"text": "a", "label": False}], "no segment in the loss"),
        ([{"text": "a", "label": True, "mask": True}], "contradicting flags"),
    ],
)
def test_malformed_segments_are_an_error(segments, message):
    with pytest.raises(RowError, match=message):
        FORMATS["segments"]({"segments": segments})
