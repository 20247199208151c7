"""Rows under the chat templates of public model families: the texts that are trained, by hand."""

# ruff: noqa: RUF001  (DeepSeek's tokens have wide bars)

import pytest

from peft_lightning.data.options import TokenOptions
from peft_lightning.data.records import RowError
from peft_lightning.data.rows.conversations import Conversation
from peft_lightning.data.tokens.tokenization import RowTokenizer
from template_families import FAMILIES
from toy_tokenizers import show

TOOL = '{"type": "function", "function": {"name": "lookup"}}'
CALL = {
    "id": "call12345",
    "type": "function",
    "function": {"name": "lookup", "arguments": {"x": 1}},
}
TOOLS = [{"type": "function", "function": {"name": "lookup"}}]


def user(text):
    return {"role": "user", "content": text}


def answer(text, **more):
    return {"role": "assistant", "content": text, **more}


def inline(thought, text):
    return answer(f"<think>\n{thought}\n</think>\n\n{text}")


CALLING = [
    user("A"),
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "7", "tool_call_id": "call12345", "name": "lookup"},
    answer("B"),
]
ROWS = {
    "single": Conversation([user("Hi"), answer("Ho")]),
    "multi": Conversation([user("A"), answer("B"), user("C"), answer("D")]),
    "system": Conversation([{"role": "system", "content": "S"}, user("A"), answer("B")]),
    "tools": Conversation(CALLING, TOOLS),
    "thought": Conversation([user("A"), answer("B", reasoning_content="T")]),
    "inline": Conversation([user("A"), inline("T", "B")]),
    "thoughts": Conversation([user("A"), inline("T", "B"), user("C"), inline("V", "D")]),
    # of some families only
    "calls": Conversation(CALLING),
    "system, multi": Conversation(
        [{"role": "system", "content": "S"}, user("A"), answer("B"), user("C"), answer("D")]
    ),
    "no_think": Conversation(
        [{"role": "system", "content": "S /no_think"}, user("A"), answer("B")]
    ),
    "thinking off": Conversation(
        [user("A"), answer("B")], template_kwargs={"enable_thinking": False}
    ),
    "thought and call": Conversation(
        [user("A"), {**CALLING[1], "reasoning_content": "T"}, *CALLING[2:]], TOOLS
    ),
    "text and call": Conversation([user("A"), {**CALLING[1], "content": "B"}], TOOLS),
}
OF_ALL = ("single", "multi", "system", "tools", "thought", "inline", "thoughts")

NO_TOOLS = RowError("leaves out the tools: lookup; give a chat_template that prints tools")
NO_CALLS = RowError("leaves out a tool call: .*give a chat_template that prints tool calls")
NO_THOUGHT = RowError("leaves out a thought: .*; reasoning: drop leaves thoughts out")
SYSTEM = "; system: merge_into_user or drop"

# what the texts below are made of
BT = "<think>\nT\n</think>\n\nB"
DV = "<think>\nV\n</think>\n\nD"
TOOL_CALL = '<tool_call>\n{"name": "lookup", "arguments": {"x": 1}}\n</tool_call>'


def im(role, text):
    return f"<|im_start|>{role}\n{text}<|im_end|>\n"


def im_answer(text, opened=""):
    return f"<|im_start|>assistant\n{opened}⟦{text}<|im_end|>⟧\n"


def header(role, text):
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}"


def llama_3(system, *turns, environment=""):
    date = "Today Date: 26 Jul 2024\n\n"
    return f"<|begin_of_text|>{header('system', environment + date + system)}<|eot_id|>" + "".join(
        header(role, text) for role, text in turns
    )


def gemma(*turns):
    return "<bos>" + "".join(f"<start_of_turn>{role}\n{text}\n" for role, text in turns)


def phi_3(*turns):
    return "".join(f"<|{role}|>\n{text}\n" for role, text in turns) + "<|endoftext|>"


def phi_4(*turns):
    return "".join(f"<|im_start|>{role}<|im_sep|>{text}" for role, text in turns)


def deepseek(text):
    return "<｜begin▁of▁sentence｜>" + text.replace("<eos>", "<｜end▁of▁sentence｜>").replace(
        "U:", "<｜User｜>"
    ).replace("A:", "<｜Assistant｜>")


def granite(*turns, system="You are Granite."):
    turns = [("system", f"{system}<|end_of_text|>"), *turns]
    return "".join(f"<|start_of_role|>{role}<|end_of_role|>{text}\n" for role, text in turns)


def command_r(*turns):
    return "<BOS_TOKEN>" + "".join(
        f"<|START_OF_TURN_TOKEN|><|{role}_TOKEN|>{text}" for role, text in turns
    )


def said(text):
    return ("CHATBOT", f"⟦<|START_RESPONSE|>{text}<|END_RESPONSE|><|END_OF_TURN_TOKEN|>⟧")


def smollm_3(*turns, mode="/think", system="You are SmolLM."):
    head = f"Today Date: 26 July 2024\nReasoning Mode: {mode}\n\n{system}"
    return im("system", head) + "".join(turns)


def harmony(text):
    return "<|start|>system<|message|>Current date: 2024-07-26<|end|>" + text


H_USER = "<|start|>user<|message|>"
H_FINAL = "<|channel|>final<|message|>"
H_THOUGHT = "<|channel|>analysis<|message|>T<|end|><|start|>assistant"
EOT, TURN, END = "<|eot_id|>", "<end_of_turn>", "<|end|>"
G_END, C_END = "<|end_of_text|>", "<|END_OF_TURN_TOKEN|>"
CALL_JSON = '{"name": "lookup", "arguments": {"x": 1}}'
QWEN_SYSTEM = im("system", "You are Qwen.")
HERMES = f"\n\n# Tools\n\n<tools>\n{TOOL}\n</tools>"
RESPONSE = im("user", "<tool_response>\n7\n</tool_response>")
DS_CALL = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>lookup\n```json\n"
    '{"x": 1}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
)
DS_OUTPUT = (
    "<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>7<｜tool▁output▁end｜><｜tool▁outputs▁end｜>"
)

TABLE = {
    "chatml": {
        "single": im("user", "Hi") + im_answer("Ho"),
        "multi": im("user", "A") + im_answer("B") + im("user", "C") + im_answer("D"),
        "system": im("system", "S") + im("user", "A") + im_answer("B"),
        "tools": NO_TOOLS,
        "calls": NO_CALLS,
        "thought": NO_THOUGHT,
        "inline": im("user", "A") + im_answer(BT),
        "thoughts": im("user", "A") + im_answer(BT) + im("user", "C") + im_answer(DV),
    },
    "llama-3": {
        "single": llama_3("", ("user", f"Hi{EOT}"), ("assistant", f"⟦Ho{EOT}⟧")),
        "multi": llama_3(
            "",
            ("user", f"A{EOT}"),
            ("assistant", f"⟦B{EOT}⟧"),
            ("user", f"C{EOT}"),
            ("assistant", f"⟦D{EOT}⟧"),
        ),
        "system": llama_3("S", ("user", f"A{EOT}"), ("assistant", f"⟦B{EOT}⟧")),
        "tools": llama_3(
            "",
            ("user", f"Use these functions:\n\n{TOOL}\n\nA{EOT}"),
            ("assistant", f'⟦{{"name": "lookup", "parameters": {{"x": 1}}}}{EOT}⟧'),
            ("ipython", f"7{EOT}"),
            ("assistant", f"⟦B{EOT}⟧"),
            environment="Environment: ipython\n",
        ),
        "thought": NO_THOUGHT,
        "inline": llama_3("", ("user", f"A{EOT}"), ("assistant", f"⟦{BT}{EOT}⟧")),
        "thoughts": llama_3(
            "",
            ("user", f"A{EOT}"),
            ("assistant", f"⟦{BT}{EOT}⟧"),
            ("user", f"C{EOT}"),
            ("assistant", f"⟦{DV}{EOT}⟧"),
        ),
    },
    "gemma": {
        "single": gemma(("user", f"Hi{TURN}"), ("model", f"⟦Ho{TURN}⟧")),
        "multi": gemma(
            ("user", f"A{TURN}"),
            ("model", f"⟦B{TURN}⟧"),
            ("user", f"C{TURN}"),
            ("model", f"⟦D{TURN}⟧"),
        ),
        "system": RowError("refuses the messages: System role not supported" + SYSTEM),
        "tools": RowError("refuses the messages: Conversation roles must alternate.*chat_template"),
        "thought": NO_THOUGHT,
        "inline": gemma(("user", f"A{TURN}"), ("model", f"⟦{BT}{TURN}⟧")),
        "thoughts": gemma(
            ("user", f"A{TURN}"),
            ("model", f"⟦{BT}{TURN}⟧"),
            ("user", f"C{TURN}"),
            ("model", f"⟦{DV}{TURN}⟧"),
        ),
    },
    "mistral-v1": {
        "single": "<s>[INST] Hi [/INST]⟦ Ho</s>⟧",
        "multi": "<s>[INST] A [/INST]⟦ B</s>⟧[INST] C [/INST]⟦ D</s>⟧",
        "system": RowError("refuses the messages: Conversation roles must alternate.*" + SYSTEM),
        "tools": RowError("refuses the messages: Conversation roles must alternate.*chat_template"),
        "thought": NO_THOUGHT,
        "inline": f"<s>[INST] A [/INST]⟦ {BT}</s>⟧",
        "thoughts": f"<s>[INST] A [/INST]⟦ {BT}</s>⟧[INST] C [/INST]⟦ {DV}</s>⟧",
    },
    "mistral-v3": {
        "single": "<s>[INST] Hi[/INST]⟦ Ho</s>⟧",
        "multi": "<s>[INST] A[/INST]⟦ B</s>⟧[INST] C[/INST]⟦ D</s>⟧",
        "system": "<s>[INST] S\n\nA[/INST]⟦ B</s>⟧",
        "system, multi": [
            "<s>[INST] S\n\nA[/INST]⟦ B</s>⟧",
            "<s>[INST] A[/INST] B</s>[INST] S\n\nC[/INST]⟦ D</s>⟧",
        ],
        "tools": (
            f"<s>[AVAILABLE_TOOLS] [{TOOL}][/AVAILABLE_TOOLS][INST] A[/INST]"
            '⟦[TOOL_CALLS] [{"name": "lookup", "arguments": {"x": 1}, "id": "call12345"}]</s>⟧'
            '[TOOL_RESULTS] {"content": 7, "call_id": "call12345"}[/TOOL_RESULTS]⟦ B</s>⟧'
        ),
        "thought": NO_THOUGHT,
        "inline": f"<s>[INST] A[/INST]⟦ {BT}</s>⟧",
        "thoughts": f"<s>[INST] A[/INST]⟦ {BT}</s>⟧[INST] C[/INST]⟦ {DV}</s>⟧",
    },
    "mistral-v7": {
        "single": "<s>[INST]Hi[/INST]⟦Ho</s>⟧",
        "multi": "<s>[INST]A[/INST]⟦B</s>⟧[INST]C[/INST]⟦D</s>⟧",
        "system": "<s>[SYSTEM_PROMPT]S[/SYSTEM_PROMPT][INST]A[/INST]⟦B</s>⟧",
        "tools": (
            f"<s>[AVAILABLE_TOOLS][{TOOL}][/AVAILABLE_TOOLS][INST]A[/INST]"
            f"⟦[TOOL_CALLS][{CALL_JSON}]</s>⟧"
            "[TOOL_RESULTS]call12345[TOOL_CONTENT]7[/TOOL_RESULTS]⟦B</s>⟧"
        ),
        "thought": NO_THOUGHT,
        "inline": f"<s>[INST]A[/INST]⟦{BT}</s>⟧",
        "thoughts": f"<s>[INST]A[/INST]⟦{BT}</s>⟧[INST]C[/INST]⟦{DV}</s>⟧",
    },
    "qwen-2.5": {
        "single": QWEN_SYSTEM + im("user", "Hi") + im_answer("Ho"),
        "multi": (
            QWEN_SYSTEM + im("user", "A") + im_answer("B") + im("user", "C") + im_answer("D")
        ),
        "system": im("system", "S") + im("user", "A") + im_answer("B"),
        "tools": (
            im("system", "You are Qwen." + HERMES)
            + im("user", "A")
            + im_answer(TOOL_CALL)
            + RESPONSE
            + im_answer("B")
        ),
        "text and call": (
            im("system", "You are Qwen." + HERMES) + im("user", "A") + im_answer(f"B\n{TOOL_CALL}")
        ),
        "thought": NO_THOUGHT,
        "inline": QWEN_SYSTEM + im("user", "A") + im_answer(BT),
        "thoughts": (
            QWEN_SYSTEM + im("user", "A") + im_answer(BT) + im("user", "C") + im_answer(DV)
        ),
    },
    "qwen-3": {
        "single": im("user", "Hi") + im_answer("<think>\n\n</think>\n\nHo"),
        "multi": [
            im("user", "A") + im_answer("<think>\n\n</think>\n\nB"),
            im("user", "A")
            + im("assistant", "B")
            + im("user", "C")
            + im_answer("<think>\n\n</think>\n\nD"),
        ],
        "system": im("system", "S") + im("user", "A") + im_answer("<think>\n\n</think>\n\nB"),
        "tools": [
            im("system", HERMES)
            + im("user", "A")
            + im_answer(f"<think>\n\n</think>\n\n{TOOL_CALL}"),
            im("system", HERMES)
            + im("user", "A")
            + im("assistant", TOOL_CALL)
            + RESPONSE
            + im_answer("<think>\n\n</think>\n\nB"),
        ],
        "thought and call": (
            im("system", HERMES)
            + im("user", "A")
            + im_answer(f"<think>\nT\n</think>\n\n{TOOL_CALL}")
            + RESPONSE
            + im_answer("<think>\n\n</think>\n\nB")
        ),
        "thought": im("user", "A") + im_answer(BT),
        "inline": im("user", "A") + im_answer(BT),
        "thoughts": [
            im("user", "A") + im_answer(BT),
            im("user", "A") + im("assistant", "B") + im("user", "C") + im_answer(DV),
        ],
        "thinking off": im("user", "A") + im_answer("B", opened="<think>\n\n</think>\n\n"),
    },
    "qwq": {
        "single": im("user", "Hi") + im_answer("\n</think>\n\nHo", opened="<think>\n"),
        "multi": [
            im("user", "A") + im_answer("\n</think>\n\nB", opened="<think>\n"),
            im("user", "A")
            + im("assistant", "B")
            + im("user", "C")
            + im_answer("\n</think>\n\nD", opened="<think>\n"),
        ],
        "system": (
            im("system", "S") + im("user", "A") + im_answer("\n</think>\n\nB", opened="<think>\n")
        ),
        "tools": NO_TOOLS,
        "calls": NO_CALLS,
        "thought": im("user", "A") + im_answer("T\n</think>\n\nB", opened="<think>\n"),
        "inline": im("user", "A") + im_answer("T\n</think>\n\nB", opened="<think>\n"),
        "thoughts": [
            im("user", "A") + im_answer("T\n</think>\n\nB", opened="<think>\n"),
            im("user", "A")
            + im("assistant", "B")
            + im("user", "C")
            + im_answer("V\n</think>\n\nD", opened="<think>\n"),
        ],
    },
    "phi-3": {
        "single": phi_3(("user", f"Hi{END}"), ("assistant", f"⟦Ho{END}⟧")),
        "multi": phi_3(
            ("user", f"A{END}"),
            ("assistant", f"⟦B{END}⟧"),
            ("user", f"C{END}"),
            ("assistant", f"⟦D{END}⟧"),
        ),
        "system": phi_3(("system", f"S{END}"), ("user", f"A{END}"), ("assistant", f"⟦B{END}⟧")),
        "tools": NO_TOOLS,
        "thought": NO_THOUGHT,
        "inline": phi_3(("user", f"A{END}"), ("assistant", f"⟦{BT}{END}⟧")),
        "thoughts": phi_3(
            ("user", f"A{END}"),
            ("assistant", f"⟦{BT}{END}⟧"),
            ("user", f"C{END}"),
            ("assistant", f"⟦{DV}{END}⟧"),
        ),
    },
    "phi-4": {
        "single": phi_4(("user", "Hi<|im_end|>"), ("assistant", "⟦Ho<|im_end|>⟧")),
        "multi": phi_4(
            ("user", "A<|im_end|>"),
            ("assistant", "⟦B<|im_end|>⟧"),
            ("user", "C<|im_end|>"),
            ("assistant", "⟦D<|im_end|>⟧"),
        ),
        "system": phi_4(
            ("system", "S<|im_end|>"), ("user", "A<|im_end|>"), ("assistant", "⟦B<|im_end|>⟧")
        ),
        "tools": NO_TOOLS,
        "thought": NO_THOUGHT,
        "inline": phi_4(("user", "A<|im_end|>"), ("assistant", f"⟦{BT}<|im_end|>⟧")),
        "thoughts": phi_4(
            ("user", "A<|im_end|>"),
            ("assistant", f"⟦{BT}<|im_end|>⟧"),
            ("user", "C<|im_end|>"),
            ("assistant", f"⟦{DV}<|im_end|>⟧"),
        ),
    },
    "deepseek-v3": {
        "single": deepseek("U:HiA:⟦Ho<eos>⟧"),
        "multi": deepseek("U:AA:⟦B<eos>⟧U:CA:⟦D<eos>⟧"),
        "system": deepseek("SU:AA:⟦B<eos>⟧"),
        "tools": NO_TOOLS,
        "calls": deepseek(f"U:AA:⟦{DS_CALL}<eos>⟧{DS_OUTPUT}⟦B<eos>⟧"),
        "thought": NO_THOUGHT,
        "inline": NO_THOUGHT,
        "thoughts": NO_THOUGHT,
    },
    "deepseek-r1": {
        "single": deepseek("U:HiA:<think>\n⟦\n</think>\n\nHo<eos>⟧"),
        "multi": [
            deepseek("U:AA:<think>\n⟦\n</think>\n\nB<eos>⟧"),
            deepseek("U:AA:B<eos>U:CA:<think>\n⟦\n</think>\n\nD<eos>⟧"),
        ],
        "system": deepseek("SU:AA:<think>\n⟦\n</think>\n\nB<eos>⟧"),
        "tools": NO_TOOLS,
        "calls": [
            deepseek(f"U:AA:<think>\n⟦\n</think>\n\n{DS_CALL}<eos>⟧"),
            deepseek(f"U:AA:{DS_CALL}<eos>{DS_OUTPUT}⟦B<eos>⟧"),
        ],
        "thought": deepseek("U:AA:<think>\n⟦T\n</think>\n\nB<eos>⟧"),
        "inline": deepseek("U:AA:<think>\n⟦T\n</think>\n\nB<eos>⟧"),
        "thoughts": [
            deepseek("U:AA:<think>\n⟦T\n</think>\n\nB<eos>⟧"),
            deepseek("U:AA:\n\nB<eos>U:CA:<think>\n⟦V\n</think>\n\nD<eos>⟧"),
        ],
    },
    "olmo-2": {
        "single": "<|endoftext|><|user|>\nHi\n<|assistant|>\n⟦Ho<|endoftext|>⟧",
        "multi": (
            "<|endoftext|><|user|>\nA\n<|assistant|>\n⟦B<|endoftext|>⟧\n"
            "<|user|>\nC\n<|assistant|>\n⟦D<|endoftext|>⟧"
        ),
        "system": "<|endoftext|><|system|>\nS\n<|user|>\nA\n<|assistant|>\n⟦B<|endoftext|>⟧",
        "tools": NO_TOOLS,
        "thought": NO_THOUGHT,
        "inline": f"<|endoftext|><|user|>\nA\n<|assistant|>\n⟦{BT}<|endoftext|>⟧",
        "thoughts": (
            f"<|endoftext|><|user|>\nA\n<|assistant|>\n⟦{BT}<|endoftext|>⟧\n"
            f"<|user|>\nC\n<|assistant|>\n⟦{DV}<|endoftext|>⟧"
        ),
    },
    "granite": {
        "single": granite(("user", f"Hi{G_END}"), ("assistant", f"⟦Ho{G_END}⟧")),
        "multi": granite(
            ("user", f"A{G_END}"),
            ("assistant", f"⟦B{G_END}⟧"),
            ("user", f"C{G_END}"),
            ("assistant", f"⟦D{G_END}⟧"),
        ),
        "system": granite(("user", f"A{G_END}"), ("assistant", f"⟦B{G_END}⟧"), system="S"),
        "tools": granite(
            ("tools", f"[{TOOL}]{G_END}"),
            ("user", f"A{G_END}"),
            ("assistant", f"⟦<|tool_call|>[{CALL_JSON}]{G_END}⟧"),
            ("tool_response", f"7{G_END}"),
            ("assistant", f"⟦B{G_END}⟧"),
        ),
        "thought": NO_THOUGHT,
        "inline": granite(("user", f"A{G_END}"), ("assistant", f"⟦{BT}{G_END}⟧")),
        "thoughts": granite(
            ("user", f"A{G_END}"),
            ("assistant", f"⟦{BT}{G_END}⟧"),
            ("user", f"C{G_END}"),
            ("assistant", f"⟦{DV}{G_END}⟧"),
        ),
    },
    "command-r": {
        "single": command_r(("USER", f"Hi{C_END}"), said("Ho")),
        "multi": command_r(("USER", f"A{C_END}"), said("B"), ("USER", f"C{C_END}"), said("D")),
        "system": command_r(("SYSTEM", f"S{C_END}"), ("USER", f"A{C_END}"), said("B")),
        "tools": command_r(
            ("USER", f"# Tools\n[{TOOL}]\nA{C_END}"),
            ("CHATBOT", f"⟦<|START_ACTION|>[{CALL_JSON}]<|END_ACTION|>{C_END}⟧"),
            ("SYSTEM", f"<|START_TOOL_RESULT|>7<|END_TOOL_RESULT|>{C_END}"),
            said("B"),
        ),
        "thought": NO_THOUGHT,
        "inline": command_r(("USER", f"A{C_END}"), said(BT)),
        "thoughts": command_r(("USER", f"A{C_END}"), said(BT), ("USER", f"C{C_END}"), said(DV)),
    },
    "smollm-3": {
        "single": smollm_3(im("user", "Hi"), im_answer("Ho")),
        "multi": smollm_3(im("user", "A"), im_answer("B"), im("user", "C"), im_answer("D")),
        "system": smollm_3(im("user", "A"), im_answer("B"), system="S"),
        "tools": smollm_3(
            im("user", "A"),
            im_answer(TOOL_CALL),
            im("user", "7"),
            im_answer("B"),
            system=f"You are SmolLM.\n\n<tools>[{TOOL}]</tools>",
        ),
        "no_think": smollm_3(
            im("user", "A"),
            im_answer("B", opened="<think>\n\n</think>\n"),
            mode="/no_think",
            system="S",
        ),
        "thinking off": smollm_3(
            im("user", "A"), im_answer("B", opened="<think>\n\n</think>\n"), mode="/no_think"
        ),
        "thought": NO_THOUGHT,
        "inline": smollm_3(im("user", "A"), im_answer(BT)),
        "thoughts": smollm_3(im("user", "A"), im_answer(BT), im("user", "C"), im_answer(DV)),
    },
    "harmony": {
        "single": harmony(f"{H_USER}Hi<|end|><|start|>assistant⟦{H_FINAL}Ho<|return|>⟧"),
        "multi": [
            harmony(f"{H_USER}A<|end|><|start|>assistant⟦{H_FINAL}B<|return|>⟧"),
            harmony(
                f"{H_USER}A<|end|><|start|>assistant{H_FINAL}B<|end|>"
                f"{H_USER}C<|end|><|start|>assistant⟦{H_FINAL}D<|return|>⟧"
            ),
        ],
        "system": harmony(
            "<|start|>developer<|message|># Instructions\n\nS<|end|>"
            f"{H_USER}A<|end|><|start|>assistant⟦{H_FINAL}B<|return|>⟧"
        ),
        "tools": harmony(
            "<|start|>developer<|message|># Tools\n\ntype lookup = () => any;<|end|>"
            f"{H_USER}A<|end|><|start|>assistant"
            '⟦ to=functions.lookup<|channel|>commentary json<|message|>{"x": 1}<|call|>⟧'
            '<|start|>functions.lookup to=assistant<|channel|>commentary<|message|>"7"<|end|>'
            f"<|start|>assistant⟦{H_FINAL}B<|return|>⟧"
        ),
        "thought and call": harmony(
            "<|start|>developer<|message|># Tools\n\ntype lookup = () => any;<|end|>"
            f"{H_USER}A<|end|><|start|>assistant⟦{H_THOUGHT}"
            ' to=functions.lookup<|channel|>commentary json<|message|>{"x": 1}<|call|>⟧'
            '<|start|>functions.lookup to=assistant<|channel|>commentary<|message|>"7"<|end|>'
            f"<|start|>assistant⟦{H_FINAL}B<|return|>⟧"
        ),
        "thought": harmony(f"{H_USER}A<|end|><|start|>assistant⟦{H_THOUGHT}{H_FINAL}B<|return|>⟧"),
        "inline": harmony(f"{H_USER}A<|end|><|start|>assistant⟦{H_THOUGHT}{H_FINAL}B<|return|>⟧"),
        "thoughts": [
            harmony(f"{H_USER}A<|end|><|start|>assistant⟦{H_THOUGHT}{H_FINAL}B<|return|>⟧"),
            harmony(
                f"{H_USER}A<|end|><|start|>assistant{H_FINAL}B<|end|>"
                f"{H_USER}C<|end|><|start|>assistant⟦{H_THOUGHT.replace('T', 'V')}"
                f"{H_FINAL}D<|return|>⟧"
            ),
        ],
    },
    "vicuna": {
        "single": "<s>A chat. USER: Hi ASSISTANT:⟦ Ho</s>⟧",
        "multi": "<s>A chat. USER: A ASSISTANT:⟦ B</s>⟧ USER: C ASSISTANT:⟦ D</s>⟧",
        "system": "<s>S USER: A ASSISTANT:⟦ B</s>⟧",
        "tools": RowError("leaves out (the tools|a message of the role tool)"),
        "thought": NO_THOUGHT,
        "inline": f"<s>A chat. USER: A ASSISTANT:⟦ {BT}</s>⟧",
        "thoughts": f"<s>A chat. USER: A ASSISTANT:⟦ {BT}</s>⟧ USER: C ASSISTANT:⟦ {DV}</s>⟧",
    },
}


def texts(family, row, **options):
    """Return the texts that are trained of a row, what is in the loss between ⟦ and ⟧."""
    tokenizer = FAMILIES[family].tokenizer()
    (encoded,) = RowTokenizer(tokenizer, options=TokenOptions(**options)).tokenize([row])
    if isinstance(encoded, RowError):
        raise encoded
    return [show(tokenizer, part) for part in encoded]


@pytest.mark.parametrize(
    ("family", "name"), [(family, name) for family, rows in TABLE.items() for name in rows]
)
def test_a_family_trains_each_answer_as_it_would_be_generated(family, name):
    expected = TABLE[family][name]
    if isinstance(expected, RowError):
        with pytest.raises(RowError, match=str(expected)):
            texts(family, ROWS[name])
    else:
        expected = [expected] if isinstance(expected, str) else expected
        assert texts(family, ROWS[name]) == expected


def test_every_family_is_tried_with_every_kind_of_row():
    assert set(TABLE) == set(FAMILIES)
    for family, rows in TABLE.items():
        assert set(OF_ALL) <= set(rows), family
