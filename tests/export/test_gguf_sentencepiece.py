"""Tokenizers of SentencePiece's kind in a GGUF file: the scores by which llama.cpp merges."""

import json
from itertools import pairwise

import gguf
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from peft_lightning.adapters import LoRA, save_adapter
from peft_lightning.base_model import load_base_model, resolve
from peft_lightning.commands.export import export
from peft_lightning.export import llama_cpp
from peft_lightning.export.gguf_sentencepiece import adds_space, scores_of
from peft_lightning.export.gguf_tokenizer import find_pre, require_known
from tiny import tiny_model
from tiny_run import CHATML

WORDS = ["▁the", "▁t", "th", "he", "the", "▁a", "an", "▁an", "in", "ing", "▁in", "er", "▁▁", "ther"]
WORDS += ["▁the" + "r", "re", "▁w", "wa", "▁wa", "at", "er" + "s", "ter", "▁wat", "▁water"]
TEXTS = [
    "the water in the other winter",
    "a  thing there,\nanother\ttheater",
    " the",
    "naïve 7 → water",
    "<s>user\nthe water</s>\nthere<sep> water",
    "",
]


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch):
    monkeypatch.setattr(resolve, "hub_answers", lambda: False)


def tokenizer_of(kind, template=CHATML, merges=None):
    """Return a tokenizer as those of Llama 2, Mistral v3 or Gemma, made of a SentencePiece model.

    Its merges are all pairs that make a token, in the order of the tokens, as transformers'
    converter has them.
    """
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    tokens += ["▁", *"abcdefghijklmnopqrstuvwxyz,\n\t", *WORDS]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if merges is None:
        cuts = [(word[:i], word[i:]) for word in WORDS for i in range(1, len(word))]
        merges = [cut for cut in cuts if cut[0] in vocabulary and cut[1] in vocabulary]
    backend = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    replace = normalizers.Replace(" ", "▁")
    if kind == "llama":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
    elif kind == "gemma":
        backend.normalizer = replace
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    backend.add_tokens([AddedToken("<sep>", special=False, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=template,
    )


def content_of(tokenizer):
    return json.loads(tokenizer.backend_tokenizer.to_str())


def merged_by_scores(text, scores):
    """Return the tokens of a text by the rule of SentencePiece: the highest score, leftmost."""
    symbols = list(text)
    while True:
        pairs = [(scores.get(a + b), -i) for i, (a, b) in enumerate(pairwise(symbols))]
        pairs = [pair for pair in pairs if pair[0] is not None]
        if not pairs:
            return symbols
        at = -max(pairs)[1]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]


def test_scores_merge_as_the_merges_of_tokenizer_json_do():
    tokenizer = tokenizer_of("llama")
    scores = scores_of(content_of(tokenizer))
    for text in ("the water in the other winter", "there another theater", "aaa the  inga"):
        assert merged_by_scores("▁" + text.replace(" ", "▁"), scores) == tokenizer.tokenize(text)


@pytest.mark.parametrize(
    ("kind", "template", "adds"),
    [
        ("llama", CHATML, True),
        ("gemma", CHATML, False),
        ("mistral", CHATML, False),  # whose chats begin with a special token
        ("mistral", None, True),
    ],
)
def test_a_space_is_put_in_front_where_the_tokenizer_does(kind, template, adds):
    assert adds_space(content_of(tokenizer_of(kind)), template is not None) == adds


def test_merges_that_scores_cannot_tell_are_refused():
    with pytest.raises(ValueError, match="has '▁the' and does not merge '▁t' and 'he' to it"):
        require_known(tokenizer_of("llama", merges=[("t", "h"), ("▁", "the")]), None)
    tokenizer = tokenizer_of("llama")
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    with pytest.raises(ValueError, match=r"changes its text by \['NFKC'\] and no cutting"):
        require_known(tokenizer, None)


def test_falcons_and_olmos_ways_to_cut_have_llamas_names():
    parts = [
        pre_tokenizers.Punctuation("contiguous"),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        pre_tokenizers.Digits(individual_digits=False),
        pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
    ]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(parts)
    assert find_pre(json.loads(backend.to_str())) == "falcon"


def write(tmp_path, kind):
    tokenizer = tokenizer_of(kind)
    tiny_model("llama", vocab_size=len(tokenizer) + 2).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    model = load_base_model(str(tmp_path / "base"))
    (adapter := LoRA(r=2)).attach(model)
    save_adapter(adapter, model, tmp_path / "ckpt")
    export(str(tmp_path / "ckpt"), str(tmp_path / "m.gguf"), type="model")
    return tokenizer


def test_the_file_has_scores_types_and_the_space_in_front(tmp_path, capsys):
    tokenizer = write(tmp_path, "llama")
    assert "verified on " in capsys.readouterr().out
    known = {n: f.contents() for n, f in gguf.GGUFReader(tmp_path / "m.gguf").fields.items()}
    assert known["tokenizer.ggml.model"] == "llama"
    assert known["tokenizer.ggml.add_space_prefix"] is True
    kinds = dict(
        zip(known["tokenizer.ggml.tokens"], known["tokenizer.ggml.token_type"], strict=True)
    )
    want = {"<unk>": "UNKNOWN", "</s>": "CONTROL", "<0x0A>": "BYTE", "<sep>": "USER_DEFINED"}
    want |= {"▁the": "NORMAL", f"[PAD{len(tokenizer)}]": "UNUSED"}
    assert {token: gguf.TokenType(kinds[token]).name for token in want} == want


@pytest.mark.llama
@pytest.mark.parametrize("kind", ["llama", "gemma", "mistral"])
def test_llama_cuts_text_as_the_tokenizer_does(kind, tmp_path):
    reason = f"needs llama-cpp-python: {llama_cpp.INSTALL}"
    module = pytest.importorskip("llama_cpp", reason=reason, exc_type=ImportError)
    tokenizer = write(tmp_path, kind)
    model = module.Llama(str(tmp_path / "m.gguf"), vocab_only=True, verbose=False)
    for text in TEXTS:
        if kind == "mistral":  # which is meant for chats
            text = f"<s>{text}"
        found = model.tokenize(text.encode(), add_bos=False, special=True)
        assert found == tokenizer(text, add_special_tokens=False)["input_ids"], text
