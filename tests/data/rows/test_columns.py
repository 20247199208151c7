"""Which columns of a file are read as which of a format, and what is said of the others."""

import pytest

from peft_lightning.data.options import RowOptions
from peft_lightning.data.records import Finding, RowError
from peft_lightning.data.rows.columns import PromptTemplate
from peft_lightning.data.rows.format_detection import detect_format, resolve_format
from peft_lightning.data.rows.row_parser import RowParser
from peft_lightning.messages import UserError


def detect(names, prompts_only=False, **options):
    record = names if isinstance(names, dict) else dict.fromkeys(names, "x")
    return detect_format(record, "x.jsonl", RowOptions(**options), prompts_only)


def parse(record, **options):
    options = RowOptions(**options)
    return RowParser(detect_format(record, "x.jsonl", options), options).row(record)


def texts(row):
    return [message["content"] for message in row.messages]


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        (["prompt", "completion", "id"], "prompt_completion"),
        (["instruction", "output"], "alpaca"),
        (["instruction", "input", "output"], "alpaca"),
        (["prompt", "prompt_id", "messages"], "messages"),
        (["id", "conversations"], "sharegpt"),
        (["text", "meta"], "text"),
        (["segments"], "segments"),
    ],
)
def test_a_format_is_told_from_the_columns(columns, name):
    assert detect(columns).name == name
    assert detect(columns).columns == {}


@pytest.mark.parametrize(
    ("columns", "name", "mapping"),
    [
        (
            ["question", "answer"],
            "prompt_completion",
            {"prompt": "question", "completion": "answer"},
        ),
        (["query", "response"], "prompt_completion", {"prompt": "query", "completion": "response"}),
        (["input", "output"], "prompt_completion", {"prompt": "input", "completion": "output"}),
        (
            ["Question", "Answer"],
            "prompt_completion",
            {"prompt": "Question", "completion": "Answer"},
        ),
        (["prompt", "response"], "prompt_completion", {"completion": "response"}),
        (
            ["Prompt", "Completion"],
            "prompt_completion",
            {"prompt": "Prompt", "completion": "Completion"},
        ),
        (["instruction", "response"], "alpaca", {"output": "response"}),
        (
            ["INSTRUCTION", "RESPONSE"],
            "alpaca",
            {"instruction": "INSTRUCTION", "output": "RESPONSE"},
        ),
        (
            ["instruction", "context", "response"],
            "alpaca",
            {"output": "response", "input": "context"},
        ),
        (
            ["Instruction", "Input", "Output"],
            "alpaca",
            {"instruction": "Instruction", "output": "Output", "input": "Input"},
        ),
        (["Messages"], "messages", {"messages": "Messages"}),
        (["conversation"], "sharegpt", {"conversations": "conversation"}),
        (["Text"], "text", {"text": "Text"}),
        ([" text "], "text", {"text": " text "}),
        (
            ["system_prompt", "question", "response"],
            "prompt_completion",
            {"system": "system_prompt", "prompt": "question", "completion": "response"},
        ),
    ],
)
def test_obvious_columns_are_taken_and_told(columns, name, mapping):
    resolved = detect([*columns, "id"])
    assert (resolved.name, resolved.columns) == (name, mapping)
    told = str(resolved)
    assert told.startswith(name)
    for column, source in mapping.items():
        assert f"{column} is {source}" in told


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            ["q", "a"],
            r"the columns \['q', 'a'\] fit no format.*`data.columns: \{prompt: q, completion: a\}",
        ),
        (["text", "messages"], r"fit several formats \(messages, text\).*`data.format`"),
        (["instruction", "output", "text"], r"fit several formats \(alpaca, text\)"),
        (
            ["text", "label"],
            r"`data.columns: \{prompt: text, completion: label\}`.*`data.format: text`",
        ),
        (["Text", "Sentiment", "Label"], r"`data.columns: \{prompt: Text, completion: Label\}`"),
        (["text", "summary"], r"`data.columns: \{prompt: text, completion: summary\}`"),
        (
            ["question", "answer", "response"],
            r"which of the columns .* are the prompt.*`data.columns",
        ),
        (["question", "input", "answer"], r"which of the columns .*`data.prompt: "),
        (["context", "question", "answer"], r'`data.prompt: "\{context\} \{question\}"`'),
        (["question", "choices", "answer"], r'`data.prompt: "\{choices\} \{question\}"`'),
        (
            ["prompt", "chosen", "rejected"],
            r"`data.columns: \{prompt: prompt, completion: chosen\}`",
        ),
        (["text", "category"], r"`data.columns: \{prompt: text, completion: category\}`"),
        (["Body", "Question", "Answer"], r'`data.prompt: "\{Body\} \{Question\}"`'),
        (["sentence", "sort"], r"`data.columns: \{prompt: sentence, completion: sort\}`"),
        (["chosen", "rejected"], r"`data.columns: \{messages: chosen\}`"),
        (
            ["instruction", "input", "chosen", "rejected"],
            r"\{instruction: instruction, output: chosen\}",
        ),
        (["messages", "chosen", "rejected"], r"for preference tuning.*`data.format`"),
        (["query", "response", "rejected_response"], r"for preference tuning"),
        (["input_ids", "labels"], r"rows of token ids are not read"),
    ],
)
def test_columns_that_are_not_clear_are_an_error_that_says_what_to_write(columns, message):
    with pytest.raises(UserError, match=rf"^x\.jsonl: .*{message}"):
        detect(columns)


@pytest.mark.parametrize(
    ("columns", "name", "mapping"),
    [
        (
            ["question", "answer"],
            "prompt_completion",
            {"prompt": "question", "completion": "answer"},
        ),
        (["instruction", "response"], "alpaca", {"output": "response"}),
        (
            ["instruction", "output"],
            "prompt_completion",
            {"prompt": "instruction", "completion": "output"},
        ),
        (["text", "label"], "text", {}),
        (["messages", "prompt", "completion"], "messages", {}),
    ],
)
def test_a_format_that_is_named_has_its_columns_under_other_names_too(columns, name, mapping):
    assert detect(columns, format=name).columns == mapping


def test_chosen_conversations_are_named_as_messages():
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    record = {"prompt": "q", "chosen": turns, "rejected": turns}
    with pytest.raises(UserError, match=r"`data\.columns: \{messages: chosen\}`"):
        detect(record)
    row = parse(record, columns={"messages": "chosen"})
    assert texts(row) == ["q", "a"]
    assert {f.subject for f in row.findings} == {"prompt", "rejected"}


@pytest.mark.parametrize(
    ("record", "options", "expected"),
    [
        ({"q": "1+1", "a": "2"}, {"prompt": "q", "completion": "a"}, ["1+1", "2"]),
        ({"text": "good", "label": 1}, {"prompt": "text", "completion": "label"}, ["good", "1"]),
        ({"q": "x", "prompt": "y", "completion": "z"}, {"prompt": "q"}, ["x", "z"]),
        (
            {"prompt": "a", "completion": "b"},
            {"prompt": "completion", "completion": "prompt"},
            ["b", "a"],
        ),
        ({"sys": "S", "question": "q", "answer": "a"}, {"system": "sys"}, ["S", "q", "a"]),
        ({"text": "t", "q": "x", "a": "y"}, {"prompt": "q", "completion": "a"}, ["x", "y"]),
    ],
)
def test_a_user_may_name_the_columns(record, options, expected):
    assert texts(parse(record, columns=options)) == expected


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prompt": "questoin"}, r"prompt is 'questoin', but .*; did you mean question\?"),
        ({"promt": "question"}, r"no format has a column 'promt'.*; did you mean prompt\?"),
    ],
)
def test_a_misspelt_column_is_an_error(columns, message):
    with pytest.raises(UserError, match=message):
        detect(["question", "answer"], columns=columns)


def test_every_column_that_is_not_read_is_a_finding_but_not_an_empty_one():
    row = parse(
        {"prompt": "p", "completion": "c", "id": 3, "meta": {"a": 1}, "note": None, "x": []}
    )
    assert row.findings == (Finding("unused column", "id"), Finding("unused column", "meta"))
    assert parse({"text": "t", "loss_mask": [1]}).findings == (
        Finding("unused column", "loss_mask"),
    )
    replaced = parse({"q": "x", "prompt": "y", "completion": "z"}, columns={"prompt": "q"})
    assert replaced.findings == (Finding("unused column", "prompt"),)
    assert parse({"question": "p", "answer": "c"}).findings == ()


def test_every_key_of_a_message_that_is_not_read_is_a_finding():
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "q", "cache_control": {"a": 1}}]},
        {"role": "assistant", "content": "a", "rating": 5, "note": None, "name": "n"},
    ]
    row = parse({"messages": turns})
    subjects = ["content.cache_control", "rating"]
    assert row.findings == tuple(Finding("unused key", subject) for subject in subjects)
    assert row.messages[1]["rating"] == 5  # a chat template may read it


@pytest.mark.parametrize(
    ("value", "text"),
    [(3, "3"), (0.1, "0.1"), (145.0, "145.0"), (True, "true"), (-7, "-7"), ("007", "007")],
)
def test_a_number_in_a_column_of_text_is_taken_as_it_is_written(value, text):
    row = parse({"prompt": "p", "completion": value})
    assert texts(row) == ["p", text]
    number = not isinstance(value, str)
    assert row.findings == (Finding("number taken as text", "completion"),) * number


def test_a_list_of_one_value_is_the_value():
    row = parse({"q": "p", "answers": [42.0]}, columns={"prompt": "q", "completion": "answers"})
    assert texts(row) == ["p", "42.0"]
    assert Finding("list of one value taken as the value", "completion") in row.findings


def test_a_template_makes_the_prompt_of_several_columns():
    record = {"question": "1+1", "level": 2, "choices": ["a", "b"], "answer": "2", "id": 7}
    template = "Level {level}: {question}\n{choices} {{x}}\nAnswer:"
    row = parse(record, prompt=template)
    assert texts(row) == ['Level 2: 1+1\n["a", "b"] {x}\nAnswer:', "2"]
    assert row.findings == (
        Finding("number taken as text", "level"),
        Finding("object written as JSON", "choices"),
        Finding("unused column", "id"),
    )
    named = parse(record, prompt="{question}", columns={"completion": "level"})
    assert texts(named) == ["1+1", "2"]


def test_a_column_of_the_template_is_no_flag_of_the_row():
    record = {"weight": 72, "label": False, "answer": "a"}
    row = parse(record, prompt="{weight} kg, {label}")
    assert texts(row) == ["72 kg, false", "a"]
    assert row.weights is None


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{questoin}", r"data.prompt has \{questoin\}, but .*; did you mean question\?"),
        ("question", "has no column; write a column's name in braces"),
        ("{question", "write a column's name in braces, and {{ for a brace"),
        ("{}", "has no column"),
        ("{question:>10}", "no format is known"),
        ("{question!r}", "no format is known"),
    ],
)
def test_a_malformed_template_is_an_error(template, message):
    with pytest.raises(UserError, match=message):
        detect(["question", "answer"], prompt=template)


def test_a_template_without_a_completion_asks_for_it():
    with pytest.raises(UserError, match=r"`data\.columns: \{completion: NAME\}` says which of"):
        detect(["text", "label"], prompt="{text}")
    with pytest.raises(UserError, match=r"data\.prompt and data\.columns both give the prompt"):
        detect(["text", "label"], prompt="{text}", columns={"prompt": "text"})


def test_a_row_that_lacks_a_column_of_the_template_is_an_error():
    template = PromptTemplate("{a}")
    with pytest.raises(RowError, match=r"column 'a' of data.prompt is missing: there are \['b'\]"):
        template.fill({"b": 1}, [])
    with pytest.raises(RowError, match=r"column 'a' of data.prompt is null: write ''"):
        template.fill({"a": None}, [])


ODD = {"a": "b"}
GOOD = {"prompt": "p", "completion": "c"}


def located(*records):
    return ((record, f"x:{i}") for i, record in enumerate(records, start=1))


def test_the_first_row_decides_and_with_skip_the_first_that_fits_a_format():
    with pytest.raises(UserError, match="fit no format"):
        resolve_format(located(ODD, GOOD), RowOptions(), "x")
    skip = RowOptions(on_bad_row="skip")
    resolved, rows = resolve_format(located(RowError("bad"), ODD, GOOD), skip, "x")
    assert resolved.name == "prompt_completion"
    assert [where for _, where in rows] == ["x:1", "x:2", "x:3"]
    with pytest.raises(UserError, match=r"the columns \['a'\] fit no format"):
        resolve_format(located(ODD, ODD), skip, "x")


def test_without_a_well_formed_row_any_format_will_do():
    resolved, rows = resolve_format(located(RowError("bad")), RowOptions(), "x")
    assert str(resolved) == "text"
    assert len(list(rows)) == 1


@pytest.mark.parametrize(
    ("columns", "options", "name", "mapping"),
    [
        (["prompt"], {}, "prompt_completion", {}),
        (["instruction"], {}, "alpaca", {}),
        (["question"], {}, "prompt_completion", {"prompt": "question"}),
        (
            ["question", "answer"],
            {},
            "prompt_completion",
            {"prompt": "question", "completion": "answer"},
        ),
        (
            ["q"],
            {"columns": {"prompt": "q", "completion": "a"}},
            "prompt_completion",
            {"prompt": "q", "completion": "a"},
        ),
        (["q"], {"prompt": "{q}?"}, "prompt_completion", {}),
        (["messages"], {}, "messages", {}),
        (["instruction", "context"], {}, "alpaca", {"input": "context"}),
        (
            ["instruction", "context", "response"],
            {},
            "alpaca",
            {"output": "response", "input": "context"},
        ),
        (["prompt", "input"], {}, "prompt_completion", {}),
        (["prompt", "response"], {}, "prompt_completion", {"completion": "response"}),
        (["instruction"], {"format": "alpaca"}, "alpaca", {}),
        (
            ["question"],
            {"format": "prompt_completion"},
            "prompt_completion",
            {"prompt": "question"},
        ),
    ],
)
def test_rows_to_generate_from_may_lack_their_completions(columns, options, name, mapping):
    resolved = detect(columns, prompts_only=True, **options)
    assert (resolved.name, resolved.columns) == (name, mapping)


SQUAD = {
    "context": "The cat sat.",
    "question": "Who sat?",
    "answers": {"text": ["The cat", "cat"], "answer_start": [0, 4]},
}


@pytest.mark.parametrize(
    ("record", "columns", "expected"),
    [
        (SQUAD, {"prompt": "question", "completion": "answers.text[0]"}, ["Who sat?", "The cat"]),
        (SQUAD, {"prompt": "question", "completion": "answers.text[1]"}, ["Who sat?", "cat"]),
        (
            {"q": "x", "answer": {"value": "y", "aliases": []}},  # TriviaQA's
            {"prompt": "q", "completion": "answer.value"},
            ["x", "y"],
        ),
        (
            {"qa": [{"q": "x", "a": "y"}]},
            {"prompt": "qa[0].q", "completion": "qa[0].a"},
            ["x", "y"],
        ),
        ({"q": "x", "a": '{"b": ["y"]}'}, {"prompt": "q", "completion": "a.b[0]"}, ["x", "y"]),
        ({"q": "x", "a.b": "y", "a": {"b": 1}}, {"prompt": "q", "completion": "a.b"}, ["x", "y"]),
        ({"q": "x", "a.b": {"c": "y"}}, {"prompt": "q", "completion": "a.b.c"}, ["x", "y"]),
        (
            {"data": {"turns": [{"from": "user", "value": "x"}, {"from": "gpt", "value": "y"}]}},
            {"messages": "data.turns"},
            ["x", "y"],
        ),
    ],
)
def test_a_path_leads_into_the_objects_of_a_column(record, columns, expected):
    assert texts(parse(record, columns=columns)) == expected


def test_a_template_takes_paths_too():
    template = "{context}\n{question} {answers.answer_start[0]}"
    row = parse(SQUAD, prompt=template, columns={"completion": "answers.text[0]"})
    assert texts(row) == ["The cat sat.\nWho sat? 0", "The cat"]
    assert row.findings == (Finding("number taken as text", "answers.answer_start[0]"),)


def test_what_no_path_reads_of_a_column_is_a_finding():
    columns = {"prompt": "question", "completion": "answers.text[0]"}
    row = parse(SQUAD, columns=columns)
    assert Finding("unused column", "answers.answer_start") in row.findings
    assert Finding("unused column", "answers") not in row.findings
    row = parse({"q": "x", "a": ["y", "z"]}, columns={"prompt": "q", "completion": "a[0]"})
    assert row.findings == (Finding("unused column", "a[...]"),)


@pytest.mark.parametrize(
    ("answers", "path", "message"),
    [
        ({"text": []}, "answers.text[0]", r"no value at 'answers\.text\[0\]': answers\.text has 0"),
        ({"txt": ["a"]}, "answers.text[0]", r"answers has \['txt'\]; did you mean txt\?"),
        ([{"text": "a"}], "answers.text", r"is no object but list; write answers\[0\]\.text"),
        ("a", "answers[0]", r"answers is no list but str"),
        ({"text": ["a"]}, "answers.text[x]", r"a path is written as answers\.text or"),
        ({"text": ["a"]}, "answers..text", r"a path is written as"),
        ({"text": None}, "answers.text[0]", "completion"),
        (None, "answers.text[0]", "completion"),
    ],
)
def test_a_path_that_leads_nowhere_is_an_error_of_the_row(answers, path, message):
    columns = {"prompt": "question", "completion": path}
    with pytest.raises(RowError, match=message):
        parse({"question": "q", "answers": answers}, columns=columns)


def test_rows_to_generate_from_need_not_have_what_a_path_to_the_completion_leads_to():
    options = RowOptions(columns={"prompt": "q", "completion": "a.text[0]"})
    for record in ({"q": "x"}, {"q": "x", "a": {"text": []}}):
        resolved = detect_format(record, "x", options, prompts_only=True)
        assert texts(RowParser(resolved, options).prompt(record)) == ["x"]


def test_a_path_into_a_column_that_is_not_there_is_an_error():
    with pytest.raises(UserError, match=r"is 'answrs\.text', but .* did you mean answers"):
        detect(["question", "answers"], columns={"completion": "answrs.text"})
