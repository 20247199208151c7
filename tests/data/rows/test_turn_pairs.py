"""XTuner's turns: a question and its answer in one object."""

import pytest

from peft_lightning.data.options import RowOptions
from peft_lightning.data.records import Finding, RowError
from peft_lightning.data.rows.format_detection import detect_format
from peft_lightning.data.rows.row_parser import RowParser

FIRST, SECOND = {"input": "q1", "output": "a1"}, {"input": "q2", "output": "a2"}
SPOKEN = [("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")]


def parser_of(record, prompts_only=False):
    return RowParser(detect_format(record, "x.jsonl", RowOptions(), prompts_only), RowOptions())


def parse(turns, **columns):
    record = {"conversation": turns, **columns}
    return parser_of(record).row(record)


def spoken(row):
    return [(message["role"], message["content"]) for message in row.messages]


@pytest.mark.parametrize("column", ["conversation", "conversations", "messages"])
def test_each_object_is_a_question_and_its_answer(column):
    record = {column: [FIRST, SECOND]}
    row = parser_of(record).row(record)
    assert spoken(row) == SPOKEN
    assert row.weights is None
    assert row.findings == ()


def test_a_system_message_comes_first_and_an_empty_one_is_none():
    assert spoken(parse([{"system": "S", **FIRST}, SECOND])) == [("system", "S"), *SPOKEN]
    assert spoken(parse([{"system": "", **FIRST}, SECOND])) == SPOKEN
    assert spoken(parse([FIRST, SECOND], system="S")) == [("system", "S"), *SPOKEN]


def test_flags_of_the_loss_are_the_answers():
    turns = [{**FIRST, "output_with_loss": False}, SECOND]
    assert [parse(turns).weight(i) for i in range(4)] == [0, 0, 0, 1]
    turns = [{**FIRST, "weight": 0.5}, SECOND]
    assert [parse(turns).weight(i) for i in range(4)] == [0, 0.5, 0, 1]
    with pytest.raises(RowError, match="output_with_loss and weight; keep one"):
        parse([{**FIRST, "output_with_loss": True, "weight": 0.5}])
    masked = parse([FIRST, SECOND], loss_mask=[0, 0, 0, 1])
    assert [masked.weight(i) for i in range(4)] == [0, 0, 0, 1]


def test_another_key_is_a_finding():
    assert parse([{**FIRST, "rating": 5}]).findings == (Finding("unused key", "rating"),)


def test_the_last_answer_is_left_out_of_a_prompt():
    for turns in ([FIRST, SECOND], [FIRST, {"input": "q2"}]):
        record = {"conversation": turns}
        assert spoken(parser_of(record, True).prompt(record)) == SPOKEN[:3]


def test_an_object_without_an_answer_at_the_end_is_left_out_as_other_turns_are():
    row = parse([FIRST, {"input": "q2"}])
    assert spoken(row) == SPOKEN[:2]
    assert row.findings == (Finding("turns after the last answer left out"),)


def test_an_empty_answer_is_an_error():
    with pytest.raises(RowError, match="empty assistant turn"):
        parse([{"input": "q", "output": ""}])
