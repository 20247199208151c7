"""Chat templates in the style of public model families, each with the special tokens it prints.

They are written for these tests from the families' published formats. What matters for training is
as there: what stands before and after a turn, what differs for the last turn, where thoughts and
tools are printed, and which messages are refused.
"""

# ruff: noqa: RUF001  (DeepSeek's tokens have wide bars)

from dataclasses import dataclass

from toy_tokenizers import byte_tokenizer


@dataclass(frozen=True)
class Family:
    """A chat template and the tokens of its tokenizer.

    Args:
        template: The Jinja source.
        eos: The EOS token.
        bos: The BOS token, None for a tokenizer without one.
        special: Further special tokens.
        added: Added tokens that are not special.
    """

    template: str
    eos: str
    bos: str | None = None
    special: tuple[str, ...] = ()
    added: tuple[str, ...] = ()

    def tokenizer(self, make=byte_tokenizer):
        """Return a toy tokenizer with the family's tokens and template."""
        tokenizer = make(
            self.template,
            bos_token=self.bos,
            eos_token=self.eos,
            additional_special_tokens=list(self.special),
        )
        tokenizer.add_tokens(list(self.added))
        return tokenizer


def joined(*lines):
    """Return a template of ``lines``, which print no white space themselves."""
    return "".join(lines)


CHATML = joined(
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}",
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
)

LLAMA_3 = joined(
    "{{ bos_token }}",
    "{% if not date_string is defined %}",
    "{% set date_string = strftime_now('%d %b %Y') %}{% endif %}",
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}",
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}",
    "{{ '<|start_header_id|>system<|end_header_id|>\n\n' }}",
    "{% if tools or builtin_tools is defined %}{{ 'Environment: ipython\n' }}{% endif %}",
    "{{ 'Today Date: ' + date_string + '\n\n' + system + '<|eot_id|>' }}",
    "{% if tools %}{% set first = messages[0].content | trim %}{% set messages = messages[1:] %}",
    "{{ '<|start_header_id|>user<|end_header_id|>\n\nUse these functions:\n\n' }}",
    "{% for t in tools %}{{ t | tojson + '\n\n' }}{% endfor %}",
    "{{ first + '<|eot_id|>' }}{% endif %}",
    "{% for m in messages %}{% if m.role in ['tool', 'ipython'] %}",
    "{{ '<|start_header_id|>ipython<|end_header_id|>\n\n' }}",
    "{% if m.content is mapping %}{{ m.content | tojson }}{% else %}{{ m.content }}{% endif %}",
    "{{ '<|eot_id|>' }}{% elif 'tool_calls' in m %}{% if m.tool_calls | length != 1 %}",
    "{{ raise_exception('This model only supports single tool-calls at once!') }}{% endif %}",
    "{% set call = m.tool_calls[0].function %}",
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}",
    """{{ '{"name": "' + call.name + '", "parameters": ' + call.arguments | tojson + '}' }}""",
    "{% if builtin_tools is defined %}{{ '<|eom_id|>' }}{% else %}{{ '<|eot_id|>' }}{% endif %}",
    "{% else %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}",
    "{{ m.content | trim + '<|eot_id|>' }}{% endif %}{% endfor %}",
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}",
    "{% endif %}",
)

GEMMA = joined(
    "{{ bos_token }}{% if messages[0].role == 'system' %}",
    "{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}",
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}",
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}",
    "{% endif %}{% set role = 'model' if m.role == 'assistant' else m.role %}",
    "{{ '<start_of_turn>' + role + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}",
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
)

MISTRAL_V1 = joined(
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}",
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}",
    "{% endif %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}",
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}",
)

MISTRAL_V3 = joined(  # tools and the system message stand before the last user's turn
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content + '\n\n' %}",
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}",
    "{% set last = (messages | selectattr('role', 'equalto', 'user') | list)[-1] %}",
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{% if m == last %}",
    "{% if tools %}{{ '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}",
    "{{ '[INST] ' + system + m.content + '[/INST]' }}",
    "{% else %}{{ '[INST] ' + m.content + '[/INST]' }}{% endif %}",
    "{% elif m.tool_calls is defined %}{% for c in m.tool_calls %}",
    "{% if not c.id is defined or c.id | length != 9 %}",
    "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}",
    """{% endif %}{{ '[TOOL_CALLS] [{"name": "' + c.function.name + '", "arguments": ' }}""",
    """{{ c.function.arguments | tojson + ', "id": "' + c.id + '"}]' }}{% endfor %}""",
    "{{ eos_token }}{% elif m.role == 'assistant' %}{{ ' ' + m.content | trim + eos_token }}",
    """{% elif m.role == 'tool' %}{{ '[TOOL_RESULTS] {"content": ' + m.content }}""",
    """{{ ', "call_id": "' + m.tool_call_id + '"}[/TOOL_RESULTS]' }}{% else %}""",
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}",
)

MISTRAL_V7 = joined(
    "{{ bos_token }}",
    "{% set last = (messages | selectattr('role', 'equalto', 'user') | list)[-1] %}",
    "{% for m in messages %}{% if m.role == 'system' %}",
    "{{ '[SYSTEM_PROMPT]' + m.content + '[/SYSTEM_PROMPT]' }}{% elif m.role == 'user' %}",
    "{% if m == last and tools %}",
    "{{ '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}",
    "{{ '[INST]' + m.content + '[/INST]' }}{% elif m.tool_calls is defined %}",
    "{{ '[TOOL_CALLS][' }}{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}",
    "{{ ']' + eos_token }}{% elif m.role == 'tool' %}",
    "{{ '[TOOL_RESULTS]' + m.tool_call_id + '[TOOL_CONTENT]' + m.content + '[/TOOL_RESULTS]' }}",
    "{% elif m.role == 'assistant' %}{{ m.content + eos_token }}{% else %}",
    "{{ raise_exception('Only user, system, assistant and tool roles are supported!') }}",
    "{% endif %}{% endfor %}",
)

HERMES_TOOLS = joined(
    "{{ '\n\n# Tools\n\n<tools>' }}{% for t in tools %}{{ '\n' + t | tojson }}{% endfor %}",
    "{{ '\n</tools>' }}",
)
HERMES_CALLS = joined(
    """{{ '<tool_call>\n{"name": "' + c.function.name + '", "arguments": ' }}""",
    "{{ c.function.arguments | tojson + '}\n</tool_call>' }}",
)

QWEN_2_5 = joined(
    "{% set default = 'You are Qwen.' %}{% if tools %}{{ '<|im_start|>system\n' }}",
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}",
    "{% else %}{{ default }}{% endif %}",
    HERMES_TOOLS,
    "{{ '<|im_end|>\n' }}{% elif messages[0].role == 'system' %}",
    "{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{% else %}",
    "{{ '<|im_start|>system\n' + default + '<|im_end|>\n' }}{% endif %}{% for m in messages %}",
    "{% if m.role == 'user' or (m.role == 'system' and not loop.first)",
    " or (m.role == 'assistant' and not m.tool_calls) %}",
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}",
    "{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant' }}",
    "{% if m.content %}{{ '\n' + m.content }}{% endif %}",
    "{% for c in m.tool_calls %}{{ '\n' }}" + HERMES_CALLS + "{% endfor %}{{ '<|im_end|>\n' }}",
    "{% elif m.role == 'tool' %}",
    "{% if loop.index0 == 0 or messages[loop.index0 - 1].role != 'tool' %}",
    "{{ '<|im_start|>user' }}{% endif %}",
    "{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}",
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}",
    "{% endif %}{% endfor %}",
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
)

QWEN_3 = joined(  # thoughts after the last user's question only, an empty one in the last turn
    "{% if tools %}{{ '<|im_start|>system\n' }}",
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}",
    HERMES_TOOLS,
    "{{ '<|im_end|>\n' }}{% elif messages[0].role == 'system' %}",
    "{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{% endif %}",
    "{% set ns = namespace(query=messages | length - 1) %}{% for m in messages %}",
    "{% if m.role == 'user' %}{% set ns.query = loop.index0 %}{% endif %}{% endfor %}",
    "{% for m in messages %}{% set content = m.content if m.content is string else '' %}",
    "{% if m.role == 'user' or (m.role == 'system' and not loop.first) %}",
    "{{ '<|im_start|>' + m.role + '\n' + content + '<|im_end|>\n' }}",
    "{% elif m.role == 'assistant' %}{% set thought = '' %}",
    "{% if m.reasoning_content is string %}{% set thought = m.reasoning_content %}",
    "{% elif '</think>' in content %}",
    "{% set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1] %}",
    "{% set thought = thought.lstrip('\n') %}",
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}",
    "{{ '<|im_start|>assistant\n' }}",
    "{% if loop.index0 > ns.query and (loop.last or thought) %}",
    "{{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}",
    "{% else %}{{ content }}{% endif %}",
    "{% for c in m.tool_calls or [] %}{% if content or not loop.first %}{{ '\n' }}{% endif %}",
    HERMES_CALLS,
    "{% endfor %}{{ '<|im_end|>\n' }}{% elif m.role == 'tool' %}",
    "{% if loop.index0 == 0 or messages[loop.index0 - 1].role != 'tool' %}",
    "{{ '<|im_start|>user' }}{% endif %}",
    "{{ '\n<tool_response>\n' + content + '\n</tool_response>' }}",
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}",
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}",
    "{% if enable_thinking is defined and enable_thinking is false %}",
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}",
)

QWQ = joined(  # opens a thought at generation, and prints none
    "{% for m in messages %}{% set content = m.content %}{% if m.role == 'assistant' %}",
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}",
    "{{ '<|im_start|>' + m.role + '\n' + content + '<|im_end|>\n' }}{% endfor %}",
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}",
)

PHI_3 = joined(  # the EOS token stands at the end of the conversation only
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}",
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
)

PHI_4 = joined(
    "{% for m in messages %}",
    "{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}{% endfor %}",
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}",
)

DEEPSEEK = joined(  # calls are turns whose content is none; thoughts are cut off
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% endif %}",
    "{% endfor %}{% set ns = namespace(tool=false) %}{% for m in messages %}",
    "{% if m.role == 'user' %}{% set ns.tool = false %}{{ '<｜User｜>' + m.content }}{% endif %}",
    "{% if m.role == 'assistant' and m['content'] is none %}",
    "{{ '<｜Assistant｜><｜tool▁calls▁begin｜>' }}{% for c in m.tool_calls %}",
    "{{ '<｜tool▁call▁begin｜>function<｜tool▁sep｜>' + c.function.name + '\n```json\n' }}",
    "{{ c.function.arguments | tojson + '\n```<｜tool▁call▁end｜>' }}{% endfor %}",
    "{{ '<｜tool▁calls▁end｜>' + eos_token }}{% elif m.role == 'assistant' %}",
    "{% set content = m.content.split('</think>')[-1] %}",
    "{% if ns.tool %}{{ '<｜tool▁outputs▁end｜>' + content + eos_token }}{% set ns.tool = false %}",
    "{% else %}{{ '<｜Assistant｜>' + content + eos_token }}{% endif %}{% endif %}",
    "{% if m.role == 'tool' %}{% set ns.tool = true %}",
    "{{ '<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>' + m.content + '<｜tool▁output▁end｜>' }}",
    "{% endif %}{% endfor %}{% if ns.tool %}{{ '<｜tool▁outputs▁end｜>' }}{% endif %}",
    "{% if add_generation_prompt and not ns.tool %}{{ '<｜Assistant｜>' }}{% endif %}",
)
DEEPSEEK_R1 = DEEPSEEK.replace(
    "'<｜Assistant｜>' }}{% endif %}", "'<｜Assistant｜><think>\n' }}{% endif %}"
)

OLMO_2 = joined(  # roles are plain text, and a line end follows EOS but for the last turn
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}",
    "{{ '<|assistant|>\n' + m.content + eos_token }}{% if not loop.last %}{{ '\n' }}{% endif %}",
    "{% else %}{{ '<|' + m.role + '|>\n' + m.content + '\n' }}{% endif %}",
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}",
)

GRANITE = joined(
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}",
    "{% set messages = messages[1:] %}{% else %}{% set system = 'You are Granite.' %}{% endif %}",
    "{{ '<|start_of_role|>system<|end_of_role|>' + system + '<|end_of_text|>\n' }}",
    "{% if tools %}{{ '<|start_of_role|>tools<|end_of_role|>' + tools | tojson }}",
    "{{ '<|end_of_text|>\n' }}{% endif %}{% for m in messages %}",
    "{% set role = 'tool_response' if m.role == 'tool' else m.role %}",
    "{{ '<|start_of_role|>' + role + '<|end_of_role|>' + (m.content or '') }}",
    "{% for c in m.tool_calls or [] %}{{ '<|tool_call|>[' + c.function | tojson + ']' }}",
    "{% endfor %}{{ '<|end_of_text|>\n' }}{% endfor %}",
    "{% if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}",
)

COMMAND_R = joined(  # two special tokens end an answer
    "{{ bos_token }}{% for m in messages %}",
    "{% set role = {'user': 'USER', 'assistant': 'CHATBOT'}.get(m.role, 'SYSTEM') %}",
    "{{ '<|START_OF_TURN_TOKEN|><|' + role + '_TOKEN|>' }}{% if m.role == 'assistant' %}",
    "{% if m.tool_calls %}{{ '<|START_ACTION|>[' }}{% for c in m.tool_calls %}",
    "{{ c.function | tojson }}{% endfor %}{{ ']<|END_ACTION|>' }}{% else %}",
    "{{ '<|START_RESPONSE|>' + m.content + '<|END_RESPONSE|>' }}{% endif %}",
    "{% elif m.role == 'tool' %}{{ '<|START_TOOL_RESULT|>' + m.content + '<|END_TOOL_RESULT|>' }}",
    "{% else %}{% if loop.first and tools %}{{ '# Tools\n' + tools | tojson + '\n' }}{% endif %}",
    "{{ m.content }}{% endif %}{{ '<|END_OF_TURN_TOKEN|>' }}{% endfor %}",
    "{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}",
)

SMOLLM_3 = joined(  # a mode of reasoning in the system message, which /no_think switches off
    "{% set mode = '/think' %}",
    "{% if enable_thinking is defined and not enable_thinking %}{% set mode = '/no_think' %}",
    "{% endif %}{% if messages[0].role == 'system' %}{% set system = messages[0].content %}",
    "{% if '/no_think' in system %}{% set mode = '/no_think' %}{% endif %}",
    "{% set system = system.replace('/no_think', '').rstrip() %}{% set messages = messages[1:] %}",
    "{% else %}{% set system = 'You are SmolLM.' %}{% endif %}",
    "{{ '<|im_start|>system\nToday Date: ' + strftime_now('%d %B %Y') + '\n' }}",
    "{{ 'Reasoning Mode: ' + mode + '\n\n' + system }}",
    "{% if tools %}{{ '\n\n<tools>' + tools | tojson + '</tools>' }}{% endif %}",
    "{{ '<|im_end|>\n' }}",
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}",
    "{% if mode == '/no_think' %}{{ '<think>\n\n</think>\n' }}{% endif %}",
    "{{ (m.content or '').lstrip('\n') }}",
    "{% for c in m.tool_calls or [] %}" + HERMES_CALLS + "{% endfor %}{{ '<|im_end|>\n' }}",
    "{% elif m.role == 'tool' %}{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}",
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}",
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}",
    "{% if mode == '/no_think' %}{{ '<think>\n\n</think>\n' }}{% endif %}{% endif %}",
)

HARMONY = joined(  # channels; <|return|> ends the last answer, <|end|> the same one as history
    "{{ '<|start|>system<|message|>Current date: ' + strftime_now('%Y-%m-%d') + '<|end|>' }}",
    "{% set system = '' %}{% if messages[0].role in ['system', 'developer'] %}",
    "{% set system = messages[0].content %}{% set messages = messages[1:] %}{% endif %}",
    "{% if system or tools %}{{ '<|start|>developer<|message|>' }}",
    "{% if system %}{{ '# Instructions\n\n' + system }}{% endif %}",
    "{% if tools %}{{ '# Tools\n\n' }}{% for t in tools %}",
    "{{ 'type ' + t.function.name + ' = () => any;' }}{% endfor %}{% endif %}{{ '<|end|>' }}",
    "{% endif %}{% set ns = namespace(name='') %}{% for m in messages %}",
    "{% if m.role == 'assistant' %}{% if '<|channel|>final<|message|>' in (m.content or '') %}",
    "{{ raise_exception('You have passed a message containing <|channel|> tags') }}{% endif %}",
    "{% if m.tool_calls %}{% set c = m.tool_calls[0].function %}{% set ns.name = c.name %}",
    "{% if m.thinking or m.content %}{{ '<|start|>assistant<|channel|>analysis<|message|>' }}",
    "{{ (m.thinking or m.content) + '<|end|>' }}{% endif %}",
    "{{ '<|start|>assistant to=functions.' + c.name + '<|channel|>commentary json<|message|>' }}",
    "{{ c.arguments | tojson + '<|call|>' }}{% elif loop.last and not add_generation_prompt %}",
    "{% if m.thinking %}{{ '<|start|>assistant<|channel|>analysis<|message|>' }}",
    "{{ m.thinking + '<|end|>' }}{% endif %}",
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|return|>' }}{% else %}",
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}{% endif %}",
    "{% elif m.role == 'tool' %}{{ '<|start|>functions.' + ns.name + ' to=assistant' }}",
    "{{ '<|channel|>commentary<|message|>' + m.content | tojson + '<|end|>' }}{% else %}",
    "{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}",
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}",
)

VICUNA = joined(
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}",
    "{% set messages = messages[1:] %}{% else %}{% set system = 'A chat.' %}{% endif %}",
    "{{ bos_token + system }}{% for m in messages %}{% if m.role == 'user' %}",
    "{{ ' USER: ' + m.content | trim }}{% elif m.role == 'assistant' %}",
    "{{ ' ASSISTANT: ' + m.content | trim + eos_token }}{% endif %}{% endfor %}",
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}",
)

IM = ("<|im_start|>", "<|im_end|>")
THINK = ("<think>", "</think>")
TOOL = ("<tool_call>", "</tool_call>")
MISTRAL_TOOLS = tuple(
    f"[{mark}{name}]" for name in ("INST", "AVAILABLE_TOOLS", "TOOL_RESULTS") for mark in ("", "/")
)
DEEPSEEK_SPECIAL = {
    "bos": "<｜begin▁of▁sentence｜>",
    "eos": "<｜end▁of▁sentence｜>",
    "added": (
        *("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", "<｜tool▁sep｜>"),
        *(f"<｜tool▁{what}▁{at}｜>" for what in ("calls", "call") for at in ("begin", "end")),
        *(f"<｜tool▁{what}▁{at}｜>" for what in ("outputs", "output") for at in ("begin", "end")),
    ),
}

FAMILIES = {
    "chatml": Family(CHATML, "<|im_end|>", None, IM),
    "llama-3": Family(
        LLAMA_3,
        "<|end_of_text|>",
        "<|begin_of_text|>",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"),
    ),
    "gemma": Family(GEMMA, "<eos>", "<bos>", ("<start_of_turn>", "<end_of_turn>")),
    "mistral-v1": Family(MISTRAL_V1, "</s>", "<s>"),
    "mistral-v3": Family(MISTRAL_V3, "</s>", "<s>", (*MISTRAL_TOOLS, "[TOOL_CALLS]")),
    "mistral-v7": Family(
        MISTRAL_V7,
        "</s>",
        "<s>",
        (
            *(*MISTRAL_TOOLS, "[TOOL_CALLS]"),
            *("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
        ),
    ),
    "qwen-2.5": Family(QWEN_2_5, "<|im_end|>", None, IM, TOOL),
    "qwen-3": Family(
        QWEN_3,
        "<|im_end|>",
        None,
        (*IM, "<|endoftext|>"),
        (*TOOL, *THINK, "<tool_response>", "</tool_response>"),
    ),
    "qwq": Family(QWQ, "<|im_end|>", None, IM, THINK),
    "phi-3": Family(
        PHI_3,
        "<|endoftext|>",
        "<s>",
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    ),
    "phi-4": Family(PHI_4, "<|im_end|>", "<|endoftext|>", (*IM, "<|im_sep|>")),
    "deepseek-v3": Family(DEEPSEEK, **DEEPSEEK_SPECIAL),
    "deepseek-r1": Family(DEEPSEEK_R1, **DEEPSEEK_SPECIAL),
    "olmo-2": Family(OLMO_2, "<|endoftext|>", "<|endoftext|>"),
    "granite": Family(
        GRANITE,
        "<|end_of_text|>",
        "<|end_of_text|>",
        ("<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>"),
    ),
    "command-r": Family(
        COMMAND_R,
        "<|END_OF_TURN_TOKEN|>",
        "<BOS_TOKEN>",
        (
            *("<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>"),
            *("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_ACTION|>", "<|END_ACTION|>"),
            *("<|START_TOOL_RESULT|>", "<|END_TOOL_RESULT|>"),
        ),
    ),
    "smollm-3": Family(SMOLLM_3, "<|im_end|>", None, IM, (*THINK, *TOOL)),
    "harmony": Family(
        HARMONY,
        "<|return|>",
        "<|startoftext|>",
        ("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|call|>"),
    ),
    "vicuna": Family(VICUNA, "</s>", "<s>"),
}
