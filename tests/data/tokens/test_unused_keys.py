"""Keys of messages that the chat template reads are no findings."""

import pytest

from peft_lightning.data.rows.formats import messages
from peft_lightning.data.tokens.tokenization import RowTokenizer
from toy_tokenizers import CHATML, byte_tokenizer


@pytest.mark.parametrize(
    ("template", "findings"),
    [
        (CHATML, ["unused key tool_plan", "unused key x"]),
        (
            CHATML.replace("m['content']", "m['content'] + m.tool_plan | default('')"),
            ["unused key x"],
        ),
    ],
)
def test_a_key_is_unused_if_the_template_does_not_name_it(template, findings):
    answer = {"role": "assistant", "content": "a", "tool_plan": "p", "x": 1}
    row = messages({"messages": [{"role": "user", "content": "q"}, answer]})
    [[tokenized]] = RowTokenizer(byte_tokenizer(template)).tokenize([row])
    assert [str(finding) for finding in tokenized.findings] == findings
