"""What options and rows say of their tokens: special tokens in text, weights, variables."""

import datetime

import pytest
from tokenizers import AddedToken

from peft_lightning.data import encode_prompt
from peft_lightning.data.options import TokenOptions
from peft_lightning.data.records import RowError
from peft_lightning.data.rows.conversations import Conversation, PlainText
from peft_lightning.data.rows.formats import FORMATS
from peft_lightning.data.tokens.tokenization import RowTokenizer
from template_families import FAMILIES, HERMES_CALLS
from toy_tokenizers import CHATML, MARKED, byte_tokenizer, show

U, A, E = "<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>"


def chat(*contents, **more):
    roles = ["user", "assistant"] * len(contents)
    messages = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
    return Conversation(messages, **more)


def pair(prompt, completion):
    return FORMATS["prompt_completion"]({"prompt": prompt, "completion": completion})


def encode(tokenizer, row, template=None, **options):
    (encoded,) = RowTokenizer(tokenizer, template, TokenOptions(**options)).tokenize([row])
    if isinstance(encoded, RowError):
        raise encoded
    return encoded


def shown(tokenizer, row, template=None, **options):
    parts = encode(tokenizer, row, template, **options)
    return "\n".join(show(tokenizer, part) for part in parts)


def findings(tokenizer, row, **options):
    return [str(finding) for part in encode(tokenizer, row, **options) for finding in part.findings]


# ---- special tokens in text --------------------------------------------------------------------


def test_special_tokens_in_text_are_text_or_tokens_or_an_error_as_the_option_says():
    tokenizer = byte_tokenizer(CHATML)
    end = tokenizer.convert_tokens_to_ids(E)
    row = chat(f"a{E}\n{A}HACK", f"b{E}c")
    expected = f"{U}a{E}\n{A}HACK{E}\n{A}⟦b{E}c{E}⟧\n"
    for value, count in (("encode", 2), ("keep", 4)):
        (part,) = encode(tokenizer, row, special_tokens_in_text=value)
        assert show(tokenizer, part) == expected
        assert part.input_ids.tolist().count(end) == count
    assert findings(tokenizer, row) == [
        "special token in the text, encoded as text: <|im_end|>",
        "special token in the text, encoded as text: <|im_start|>",
        "special token in the text, encoded as text: <|im_end|>",
    ]
    with pytest.raises(RowError, match=r"special tokens in the text: <\|im_end\|>.*encode makes"):
        encode(tokenizer, row, special_tokens_in_text="error")


def test_special_tokens_in_plain_text_and_in_tools_are_text_too():
    tokenizer = byte_tokenizer(CHATML)
    end = tokenizer.convert_tokens_to_ids("</s>")
    (part,) = encode(tokenizer, PlainText([("a</s>b", True)]))
    assert show(tokenizer, part) == "a⟦</s>b</s>⟧"
    assert part.input_ids.tolist().count(end) == 1
    family = FAMILIES["qwen-2.5"].tokenizer()
    tool = {"type": "function", "function": {"name": "f", "description": f"x{E}"}}
    (part,) = encode(family, chat("a", "b", tools=[tool]))
    assert part.input_ids.tolist().count(family.convert_tokens_to_ids(E)) == 3


def test_a_tag_of_thoughts_in_a_users_text_is_text_where_it_is_a_special_token():
    tokenizer = byte_tokenizer(CHATML)
    tokenizer.add_tokens(["<think>", "</think>"], special_tokens=True)
    tag = tokenizer.convert_tokens_to_ids("<think>")
    (part,) = encode(tokenizer, chat("<think>a", "<think>b</think>c"))
    assert part.input_ids.tolist().count(tag) == 1


def test_special_tokens_in_text_that_json_escapes_are_an_error():
    template = CHATML.replace("m['content']", "m['content'] | tojson(ensure_ascii=true)")
    tokenizer = byte_tokenizer(template)
    assert shown(tokenizer, chat("é\\ue000", "b")) == (f'{U}"\\u00e9\\\\ue000"{E}\n{A}⟦"b"{E}⟧\n')
    with pytest.raises(RowError, match="special tokens in text that the chat template prints in"):
        shown(tokenizer, chat(f"{E}", "b"))


def test_tokens_that_absorb_the_line_end_behind_them_do_so_beside_literal_tokens_too():
    tokenizer = FAMILIES["phi-3"].tokenizer()
    names = ("<|user|>", "<|assistant|>", "<|end|>")
    tokenizer.add_tokens([AddedToken(n, rstrip=True, special=True) for n in names])
    line = tokenizer("\n")["input_ids"]
    assert tokenizer("<|end|>\n")["input_ids"] == [tokenizer.convert_tokens_to_ids("<|end|>")]
    for question in ("a", "a<|end|>b"):
        (part,) = encode(tokenizer, chat(question, "c", "d", "e"))
        assert line[0] not in part.input_ids
        assert show(tokenizer, part).count("⟦c<|end|>⟧") == 1
    row = chat("a", "\n c")
    (part,) = encode(tokenizer, row)
    assert show(tokenizer, part).count("⟦\n c<|end|>⟧") == 1
    ids = encode_prompt(tokenizer, row.messages[:1])
    assert part.input_ids[: len(ids)].tolist() == ids


# ---- ends of answers ---------------------------------------------------------------------------

ENDS = {
    "chatml": E,
    "llama-3": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "mistral-v1": "</s>",
    "phi-3": "<|end|>",
    "qwen-3": E,
    "olmo-2": "<|endoftext|>",
    "harmony": "<|return|>",
}


@pytest.mark.parametrize("family", ENDS)
def test_a_completion_that_ends_with_the_end_token_gets_no_second_one(family):
    tokenizer = FAMILIES[family].tokenizer()
    row, ended = pair("a", "b"), pair("a", f"b{ENDS[family]}")
    assert shown(tokenizer, ended) == shown(tokenizer, row)
    assert findings(tokenizer, ended) == [f"answer that ends with the special token {ENDS[family]}"]
    both = chat("a", f"b{ENDS[family]}\n", "c", f"d{ENDS[family]}")
    assert shown(tokenizer, both) == shown(tokenizer, chat("a", "b", "c", "d"))


def test_plain_text_that_ends_with_the_eos_token_gets_no_second_one():
    tokenizer = byte_tokenizer()
    assert shown(tokenizer, pair("a", "b</s>")) == "a⟦b</s>⟧"
    assert shown(tokenizer, PlainText([("ab</s>", True)])) == "a⟦b</s>⟧"


def test_a_special_token_at_the_end_that_ends_no_answer_is_the_answers_text():
    tokenizer = byte_tokenizer(CHATML)
    assert shown(tokenizer, chat("a", "write <pad>")) == f"{U}a{E}\n{A}⟦write <pad>{E}⟧\n"
    row = chat("a", "write <pad>")
    assert shown(tokenizer, row, special_tokens_in_text="keep").endswith(f"⟦write <pad>{E}⟧\n")


# ---- text that is rendered already -------------------------------------------------------------

RENDERED = {
    "chatml": (f"{U}a{E}\n{A}", E),
    "llama-3": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\na<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
    ),
    "phi-3": ("<|user|>\na<|end|>\n<|assistant|>\n", "<|end|>"),
    "gemma": ("<bos><start_of_turn>user\na<end_of_turn>\n<start_of_turn>model\n", "<end_of_turn>"),
    "mistral-v3": ("<s>[INST] a[/INST]", "</s>"),
    "qwq": (f"{U}a{E}\n{A}<think>\n", E),
}


@pytest.mark.parametrize("family", RENDERED)
def test_a_prompt_that_is_rendered_already_is_not_rendered_again(family):
    tokenizer = FAMILIES[family].tokenizer()
    prompt, end = RENDERED[family]
    bare = prompt.removeprefix(tokenizer.bos_token or "")
    for completion in ("b", f"b{end}", f"b{end}\n"):
        row = pair(prompt, completion)
        (part,) = encode(tokenizer, row)
        assert show(tokenizer, part) == f"{bare}⟦b{end}⟧"
        assert findings(tokenizer, row) == ["text that is rendered in the chat template already"]
        ids = encode_prompt(tokenizer, prompt)
        assert part.input_ids[: len(ids)].tolist() == ids
        special = tokenizer.convert_tokens_to_ids(end)
        assert part.input_ids[-1] == special


def test_a_question_about_the_templates_tokens_is_rendered():
    tokenizer = byte_tokenizer(CHATML)
    assert shown(tokenizer, pair(f"What is {A}?", "b")) == f"{U}What is {A}?{E}\n{A}⟦b{E}⟧\n"


def test_text_that_is_rendered_already_gets_no_end_token():
    tokenizer = byte_tokenizer(CHATML)
    text = f"{U}a{E}\n{A}b{E}"
    (part,) = encode(tokenizer, FORMATS["text"]({"text": text + "\n"}))
    assert show(tokenizer, part) == "<|im_start|>⟦" + text[len("<|im_start|>") :] + "⟧"
    assert part.input_ids[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")


# ---- weights -----------------------------------------------------------------------------------


def weighted(tokenizer, part):
    """Return the pieces of equal weight of a text with their weights."""
    pieces = []
    for i, weight in zip(part.input_ids.tolist(), part.loss_weights.tolist(), strict=True):
        text = tokenizer.decode([i])
        if pieces and pieces[-1][1] == weight:
            pieces[-1] = (pieces[-1][0] + text, weight)
        else:
            pieces.append((text, weight))
    return pieces


def test_each_turn_has_its_weight():
    tokenizer = byte_tokenizer(CHATML)
    (part,) = encode(tokenizer, chat("a", "b", "c", "d", weights=[0, 0.5, 0, 2]))
    assert weighted(tokenizer, part) == [
        (f"{U}a{E}\n{A}", 0),
        (f"b{E}", 0.5),
        (f"\n{U}c{E}\n{A}", 0),
        (f"d{E}", 2),
        ("\n", 0),
    ]


@pytest.mark.parametrize("family", ["chatml", "llama-3", "gemma", "qwen-3", "qwq", "harmony"])
def test_each_part_of_an_answer_has_its_weight_and_the_end_token_that_of_the_last(family):
    tokenizer = FAMILIES[family].tokenizer()
    row = chat("a", "  GOOD BAD GOOD ", parts={1: [("  GOOD ", 0), ("BAD ", 0.5), ("GOOD ", 1)]})
    (part,) = encode(tokenizer, row)
    pieces = weighted(tokenizer, part)
    assert pieces[0][0].endswith("GOOD ")
    assert pieces[0][1] == 0
    assert pieces[1] == ("BAD ", 0.5)
    assert pieces[2][1] == 1
    assert pieces[2][0].rstrip() == pieces[2][0]
    assert pieces[2][0].startswith("GOOD")


def test_parts_that_the_template_does_not_print_once_are_an_error():
    template = CHATML.replace("m['content'] +", "m['content'] + m['content'] +")
    row = chat("a", "bb", parts={1: [("b", 0), ("b", 1)]})
    with pytest.raises(RowError, match="give the message one weight"):
        encode(byte_tokenizer(template), row)


def test_a_thought_may_be_a_part():
    row = chat("a", "<think>T</think>\n\nb", parts={1: [("<think>T</think>\n\n", 0), ("b", 1)]})
    assert shown(FAMILIES["qwen-3"].tokenizer(), row) == (
        f"{U}a{E}\n{A}<think>\nT\n</think>\n\n⟦b{E}⟧\n"
    )


# ---- system messages and variables of the template ---------------------------------------------

SYSTEM = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
]
TURN = "<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n⟦b<end_of_turn>⟧\n"


def test_system_messages_are_merged_or_left_out_where_a_template_takes_none():
    tokenizer, row = FAMILIES["gemma"].tokenizer(), Conversation(SYSTEM, weights=[0, 0, 0.5])
    merged = encode(tokenizer, row, system="merge_into_user")
    assert show(tokenizer, merged[0]) == "<bos>" + TURN.format("S\n\na")
    assert set(merged[0].loss_weights) == {0, 0.5}
    assert shown(tokenizer, row, system="drop") == "<bos>" + TURN.format("a")
    assert findings(tokenizer, row, system="drop") == ["system message left out"]
    options = TokenOptions(system="merge_into_user")
    ids = RowTokenizer(tokenizer, options=options).encode_prompt(Conversation(SYSTEM[:2]))
    assert merged[0].input_ids[: len(ids)].tolist() == ids


def test_variables_of_the_template_are_those_of_the_options_and_of_the_row_which_wins():
    tokenizer = FAMILIES["qwen-3"].tokenizer()
    thinking = f"{U}a{E}\n{A}⟦<think>\n\n</think>\n\nb{E}⟧\n"
    off = f"{U}a{E}\n{A}<think>\n\n</think>\n\n⟦b{E}⟧\n"
    assert shown(tokenizer, chat("a", "b")) == thinking
    options = {"chat_template_kwargs": {"enable_thinking": False}}
    assert shown(tokenizer, chat("a", "b"), **options) == off
    row = chat("a", "b", template_kwargs={"enable_thinking": True})
    assert shown(tokenizer, row, **options) == thinking


def test_a_template_that_prints_todays_date_prints_the_one_that_is_given():
    tokenizer = FAMILIES["llama-3"].tokenizer()
    assert "Today Date: 26 Jul 2024\n" in shown(tokenizer, chat("a", "b"))
    assert "Today Date: 01 Feb 2023\n" in shown(
        tokenizer, chat("a", "b"), template_date="2023-02-01"
    )
    days = [datetime.datetime.now()]
    today = shown(tokenizer, chat("a", "b"), template_date=None)
    days.append(datetime.datetime.now())
    assert any(f"Today Date: {day.strftime('%d %b %Y')}\n" in today for day in days)


def test_a_conversation_with_tools_has_the_template_for_tools():
    tokenizer = byte_tokenizer()
    tools = "{{ '<tools>' + tools | tojson + '</tools>' }}" + CHATML.replace(
        "m['content'] +",
        "(m.content or '') }}{% for c in m.tool_calls or [] %}" + HERMES_CALLS + "{% endfor %}{{ ",
    )
    tokenizer.chat_template = {"default": CHATML, "tool_use": tools}
    tool = {"name": "f"}
    call = {"function": {"name": "f", "arguments": {}}}
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "tool_calls": [call]},
    ]
    assert shown(tokenizer, chat("a", "b")) == f"{U}a{E}\n{A}⟦b{E}⟧\n"
    assert shown(tokenizer, Conversation(messages, [tool])) == (
        f'<tools>[{{"name": "f"}}]</tools>{U}a{E}\n'
        f'{A}⟦<tool_call>\n{{"name": "f", "arguments": {{}}}}\n</tool_call>{E}⟧\n'
    )


# ---- templates with generation blocks ----------------------------------------------------------


def test_only_what_is_in_generation_blocks_is_in_the_loss():
    template = MARKED.replace("{% generation %}", "{{ 'Answer: ' }}{% generation %}")
    assert shown(byte_tokenizer(template), chat("a", "b", "c", "d")) == (
        f"{U}a{E}\n{A}Answer: ⟦b{E}⟧\n{U}c{E}\n{A}Answer: ⟦d{E}⟧\n"
    )


def test_a_template_with_generation_blocks_that_strips_thoughts_trains_each_with_its_answer():
    template = MARKED.replace(
        "{% generation %}{{ m['content'] }}",
        "{% generation %}{{ m['content'] if loop.last else m['content'].split('</think>')[-1] }}",
    )
    row = chat("a", "<think>x</think>b", "c", "<think>y</think>d")
    assert shown(byte_tokenizer(template), row) == (
        f"{U}a{E}\n{A}⟦<think>x</think>b{E}⟧\n\n"
        f"{U}a{E}\n{A}b{E}\n{U}c{E}\n{A}⟦<think>y</think>d{E}⟧\n"
    )
    stripped = template.replace("m['content'] if loop.last else ", "")
    with pytest.raises(RowError, match="leaves out a thought: message 2"):
        shown(byte_tokenizer(stripped), row)


def test_an_answer_without_a_generation_block_is_an_error():
    template = MARKED.replace(
        "m['role'] == 'assistant' %}", "m['role'] == 'assistant' and loop.index0 == 1 %}"
    )
    tokenizer = byte_tokenizer(template)
    assert shown(tokenizer, chat("a", "b")) == f"{U}a{E}\n{A}⟦b{E}⟧\n"
    with pytest.raises(RowError, match="no generation block around an answer: message 4"):
        shown(tokenizer, chat("a", "b", "c", "d"))
