"""Tokenizers built offline, and a view of a row that shows its loss mask."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (  # with {% generation %}, which leaves the end marker out
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}"
    "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INST = (  # as Llama 2's
    "{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
REWRITING = (  # drops the thoughts of earlier turns, as reasoning models' templates do
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and not loop.last %}{{ m['content'].split('</think>')[-1] }}"
    "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
UNENDED = (  # nothing ends an answer
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
TURNS = {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}


def byte_tokenizer(chat_template=None, bos=False, **special):
    """One token per byte, but for two line ends, which are one: a token that can straddle."""
    alphabet = sorted(ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, "ĊĊ"])}
    backend = Tokenizer(models.BPE(vocabulary, [("Ċ", "Ċ")]))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=chat_template,
        **{**SPECIAL, **TURNS, **special},
    )
    if bos:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
        )
    return tokenizer


def gpt2_tokenizer(chat_template=None, **special):
    """As GPT-2's: "\n\n" is one token, but two where a letter follows, and so are two tabs."""
    alphabet = sorted(ByteLevel.alphabet())
    merges = [("Ċ", "Ċ"), ("ĉ", "ĉ"), ("Ġ", "Ġ"), ("t", "h"), ("Ġ", "a"), ("<", "t")]
    vocabulary = {token: i for i, token in enumerate([*alphabet, *map("".join, merges)])}
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=chat_template,
        **{**SPECIAL, **TURNS, **special},
    )


def fallback_tokenizer(chat_template=None, **special):
    """As SentencePiece: pieces with a space mark, unknown characters as bytes."""
    pieces = ["▁", "a", "b", "h", "i", "▁hi", "[INST]", "[/INST]"]
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    merges = [("▁", "h"), ("▁h", "i")]
    vocabulary = {token: i for i, token in enumerate([*tokens, "▁h"])}
    model = models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=False)
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=chat_template, **{**SPECIAL, **special}
    )


def show(tokenizer, encoded):
    """Return the text of ``encoded`` with the tokens in the loss between ⟦ and ⟧."""
    text, ids = "", [int(i) for i in encoded.input_ids]
    labelled = [bool(flag) for flag in encoded.loss_weights]
    edges = [i for i in range(1, len(ids)) if labelled[i] != labelled[i - 1]]
    for start, end in zip([0, *edges], [*edges, len(ids)], strict=True):
        piece = tokenizer.decode(ids[start:end], clean_up_tokenization_spaces=False)
        text += f"⟦{piece}⟧" if labelled[start] else piece
    return text
