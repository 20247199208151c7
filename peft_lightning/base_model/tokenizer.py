"""The tokenizer of a base model, and the one that belongs to an adapter over it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import cached_file

from peft_lightning.base_model.load_errors import explained
from peft_lightning.base_model.resolve import brings_tokenizer, locate, reading, short_name
from peft_lightning.messages import UserError, shortened
from peft_lightning.process.progress import Progress

TEMPLATE_FILE = "chat_template.jinja"

# GGUF's names of byte-level pre-tokenizers that take digits one by one; transformers' reader
# leaves that out, so that "  2" became other tokens than the model was trained on
_SINGLE_DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"}

_STEPS = ("normalizer", "pre_tokenizer", "decoder")  # of tokenizer.json
_PROBE = "It's  2026, x_1 +=   34.5;\n\n7\n\n\t(Über) 東京 12345678 naïve—ok...\r\n <a>  I'LL don't"


def load_tokenizer(
    name: str, *, trust_remote_code: bool = False, revision: str | None = None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a hub id, local folder or GGUF file.

    Raises:
        UserError: If there is none.
    """
    source, options = locate(name, revision, weights=False)
    options["trust_remote_code"] = trust_remote_code
    with reading(options), Progress(f"loading the tokenizer of {short_name(name)}"):
        with explained("tokenizer of", name, options):
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
        if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
            raise UserError(  # transformers 5 makes an empty one of nothing for some architectures
                f"{name} has no tokenizer: its vocabulary (tokenizer.json) is not there"
            )
        if "gguf_file" in options:
            _split_digits(tokenizer, Path(source, options["gguf_file"]))
            return tokenizer
        return _as_in_its_file(tokenizer, name, source, options)


def adapter_tokenizer(
    base: str,
    folder: str | Path | None,
    named: str | None = None,
    *,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> PreTrainedTokenizerBase:
    """Load the tokenizer with which an adapter was trained.

    Args:
        base: The base model: hub id, folder or GGUF file.
        folder: The adapter's folder, whose own tokenizer, or chat template, is the adapter's; None
            for the base alone.
        named: Hub id or folder of a tokenizer that the user gives, and that wins.
        trust_remote_code: Whether code that comes with the base or ``named`` may run.
        revision: Branch, tag or commit of the base.

    Raises:
        UserError: If it cannot be loaded.
    """
    if named is not None:
        return load_tokenizer(named, trust_remote_code=trust_remote_code)
    if folder is not None and brings_tokenizer(Path(folder)):
        try:
            return load_tokenizer(str(folder), trust_remote_code=trust_remote_code)
        except UserError as error:
            raise UserError(f"{error}; {base} as tokenizer takes that of the base") from error
    tokenizer = load_tokenizer(base, trust_remote_code=trust_remote_code, revision=revision)
    if folder is not None and (template := Path(folder, TEMPLATE_FILE)).is_file():
        tokenizer.chat_template = template.read_text(encoding="utf-8")
    return tokenizer


def require_tokens_fit(tokenizer: Any, model: Any, whose: object, base: str) -> None:
    """Raise UserError if a tokenizer gives ids that a model has no embedding for.

    Those that the base's own tokenizer gives too are left alone: some models are published so.

    Args:
        tokenizer: That of an adapter, or one that the user gives.
        model: The base, with the adapter.
        whose: Where the tokenizer is from, for the message.
        base: The base model, by name.
    """
    embedding = model.get_input_embeddings()
    rows = embedding.weight.shape[0] + getattr(embedding, "extra", 0)
    vocabulary = tokenizer.get_vocab()
    if max(vocabulary.values(), default=0) < rows:
        return
    own = load_tokenizer(base).get_vocab()
    beyond = {t: i for t, i in vocabulary.items() if i >= rows and own.get(t) != i}
    if beyond:
        tokens = sorted(beyond, key=lambda token: beyond[token])
        raise UserError(
            f"the tokenizer of {whose} has {len(beyond)} tokens that the model has no embedding "
            f"for, {shortened([f'{token!r} (id {beyond[token]})' for token in tokens])}: there are "
            f"{rows} rows. The adapter was saved without its resized embeddings, or is not of this "
            f"tokenizer: {base} as tokenizer takes that of the base"
        )


def _as_in_its_file(tokenizer: Any, name: str, source: str, options: dict[str, Any]) -> Any:
    """Return the tokenizer that ``tokenizer.json`` describes, if the class has made another of it.

    In transformers 5 a class such as GPT2Tokenizer takes only the vocabulary from the file, and
    cuts texts its own way, which is not that of every model that names it.
    """
    if type(tokenizer) is PreTrainedTokenizerFast or not tokenizer.is_fast:
        return tokenizer
    local = {k: options[k] for k in ("revision", "local_files_only") if k in options}
    file = cached_file(
        source, "tokenizer.json", _raise_exceptions_for_missing_entries=False, **local
    )
    if file is None:
        return tokenizer
    steps, backend = json.loads(Path(file).read_text(encoding="utf-8")), tokenizer.backend_tokenizer
    if all(_step(getattr(backend, step)) == steps.get(step) for step in _STEPS):
        return tokenizer
    exact = PreTrainedTokenizerFast.from_pretrained(source, **local)
    one, other = (
        t.backend_tokenizer.encode(_PROBE, add_special_tokens=False).ids for t in (tokenizer, exact)
    )
    if one == other:
        return tokenizer
    print(
        f"the tokenizer of {name} is as its tokenizer.json says: {type(tokenizer).__name__} of "
        "this transformers would cut texts in another way",
        file=sys.stderr,
    )
    return exact


def _step(step: Any) -> Any:
    return None if step is None else json.loads(step.__getstate__())


def _split_digits(tokenizer: Any, file: Path) -> None:
    from tokenizers import pre_tokenizers

    from peft_lightning.base_model.gguf_reading import reading_gguf

    with reading_gguf() as open_file:
        field = open_file(file).get_field("tokenizer.ggml.pre")
    if field is not None and field.contents() in _SINGLE_DIGITS:
        backend = tokenizer.backend_tokenizer
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
