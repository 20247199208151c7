"""A model as a GGUF file: merged, written, verified and quantised."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peft_lightning.adapters.base_check import require_base
from peft_lightning.adapters.folder import SavedAdapter
from peft_lightning.adapters.lora.merge_extra_modules import has_extra_modules
from peft_lightning.adapters.lora.method import LoRA
from peft_lightning.adapters.merge import require_lora
from peft_lightning.base_model import load_tokenizer
from peft_lightning.base_model.weights import NotStreamableError, open_weights
from peft_lightning.data import PromptFormat
from peft_lightning.export import llama_cpp
from peft_lightning.export.answering import Answering
from peft_lightning.export.gguf import write_model
from peft_lightning.export.gguf_layout import Layout
from peft_lightning.export.gguf_tokenizer import add_vocabulary, copy_vocabulary
from peft_lightning.export.gguf_types import tensor_types
from peft_lightning.export.merged_folder import write_merged
from peft_lightning.export.merged_weights import MergedTensors
from peft_lightning.export.ollama import write_modelfile
from peft_lightning.export.reference import LONGEST_ROW, Reference, logits_of, reference_of
from peft_lightning.export.unverified import UNFINISHED, UNVERIFIED, settle
from peft_lightning.export.verify import THRESHOLDS, compare_logits
from peft_lightning.files import atomic_file, atomic_text, scratch_folder, writing

Q8_0 = "q8_0"  # the one type that is not left to llama.cpp


class ModelFile:
    """A base, merged with an adapter or as it is, that is to be a GGUF file.

    Args:
        base: The base model.
        folder: The adapter's folder; None for ``base`` as it is.
        saved: Content of ``folder``.
        options: ``trust_remote_code`` and ``revision`` of the base.
        prompts: How the prompts of the training rows were made.
        allow_base_mismatch: Whether to accept an adapter of another base.
        pre: llama.cpp's name of the pre-tokenizer; found from the tokenizer if None.
    """

    def __init__(
        self,
        base: str,
        folder: str | None,
        saved: SavedAdapter | None,
        options: dict[str, Any],
        prompts: PromptFormat,
        allow_base_mismatch: bool = False,
        pre: str | None = None,
    ) -> None:
        self.base, self.folder, self.saved, self.options = base, folder, saved, options
        self.allow_base_mismatch, self.pre, self.prompts = allow_base_mismatch, pre, prompts
        self.text: str | None = None
        self.device = "cpu"
        self.max_logit_difference: float | None = None

    def _vocabulary(self, asked: Answering, size: int) -> Callable[..., None]:
        """Return what adds the tokenizer to the file of a model with ``size`` embeddings."""
        tokenizer, template = asked.tokenizer, asked.template
        if self.base.endswith(".gguf"):
            known = load_tokenizer(self.base).get_vocab()
            if all(known.get(token) == i for token, i in tokenizer.get_vocab().items()):
                file = Path(self.base).expanduser()
                return partial(copy_vocabulary, file=file, template=template)
        own = partial(add_vocabulary, tokenizer=tokenizer, size=size, pre=self.pre)
        return partial(own, ends=asked.ends, template=template)

    def verify_on(self, text: str, device: str, max_logit_difference: float | None) -> None:
        """Have the file compared with the base and its adapter when it is written.

        Args:
            text: To compare on.
            device: Where to compute.
            max_logit_difference: As of the command merge.
        """
        self.text, self.device = text, device
        self.max_logit_difference = max_logit_difference

    def write(self, out: Path, dtype: torch.dtype | None, quantized: str | None) -> None:
        """Write the file and, if wanted, verify it.

        What is quantised is verified before, and what quantising changes is said.

        Args:
            out: To write.
            dtype: Data type of the matrices; that of the base if None.
            quantized: One of llama.cpp's types instead.

        Raises:
            UserError: If the adapter does not fit the base.
            RunError: If what is written is not what was trained, or llama.cpp does not take it.
        """
        mark = Path(f"{out}.{UNVERIFIED}")
        mark.unlink(missing_ok=True)  # of another file of this name
        if self.text is not None:  # before the file is there
            atomic_text(mark, UNFINISHED)
        if quantized is None or (quantized == Q8_0 and self.text is None):
            layout, stored = self._merge(out, out.stem, dtype, quantized == Q8_0)
            self._say_written(out, layout)
            self._verify(out, str(out), mark, layout, THRESHOLDS[stored])
            return
        plain_place = out.with_name(f"{out.name}.unquantized")
        with writing(out), scratch_folder(plain_place) as temporary:
            plain = temporary / "model.gguf"
            layout, stored = self._merge(plain, out.stem, None, False)
            reference = self._verify(plain, str(out), mark, layout, THRESHOLDS[stored])
            if quantized == Q8_0:
                self._merge(out, out.stem, None, True)
            else:
                with atomic_file(out) as file:
                    llama_cpp.quantize(plain, file, quantized)
        self._say_written(out, layout)
        if reference is not None:
            found = compare_logits(reference, self._logits(out, layout, reference, quantized))
            print(f"{quantized} on {found}".replace(" merged, ", f" {quantized}, "))

    def _say_written(self, out: Path, layout: Layout) -> None:
        types = tensor_types(out)
        print(f"exported: {out}, {out.stat().st_size:,} bytes, {types}{layout.of_context()}")
        print(write_modelfile(out, self.answering, is_adapter=False))

    def _logits(
        self, file: Path, layout: Layout, reference: Reference, quantized: str | None = None
    ) -> list[Tensor]:
        """Return a file's logits: llama.cpp's if it made the file, or transformers misreads it."""
        by_llama = quantized not in (None, Q8_0)
        if by_llama or (llama_cpp.is_installed() and layout.unread_in(file)):
            return llama_cpp.logits_of_file(str(file), reference.rows)
        return logits_of(str(file), reference.rows, self.device, self.options)

    def _verify(
        self, file: Path, out: str, mark: Path, layout: Layout, limit: float
    ) -> Reference | None:
        """Compare a file with the base and its adapter; return what they compute, if they can be.

        Args:
            file: The model's.
            out: What the user gets of it.
            mark: File that marks ``out`` as unverified.
            layout: Of the file.
            limit: Largest allowed difference of a logit, if the user gave none.
        """
        if self.text is None:
            return None
        unread = layout.unread_in(file)
        if unread and not llama_cpp.is_installed():
            print(f"not verified: {unread}; llama.cpp itself is asked after {llama_cpp.INSTALL}")
            mark.unlink()
            return None
        length = min(LONGEST_ROW, layout.context_length)
        where = (self.text, self.device, self.options, length)
        reference = reference_of(self.base, self.folder, *where, saved=self.saved)
        limit = max(limit, llama_cpp.OWN_ROUNDING) if unread else limit
        found = compare_logits(reference, self._logits(file, layout, reference))
        settle(mark, out, found, self.max_logit_difference or limit)
        return reference

    def _merge(
        self, out: Path, name: str, dtype: torch.dtype | None, q8_0: bool
    ) -> tuple[Layout, torch.dtype]:
        """Write the model; return its layout and the data type of its matrices."""
        base, folder, saved, options = self.base, self.folder, self.saved, self.options
        adapter: LoRA | None = None
        tensors: dict[str, Tensor] = {}
        facts: dict[str, Any] = {"base_fingerprint": None}
        if saved is not None:
            tensors, facts = saved.tensors, saved.facts
            adapter = require_lora(saved.adapter, "a GGUF file", folder)
        with writing(out), scratch_folder(out.with_name(f"{out.name}.merged")) as temporary:
            try:
                if has_extra_modules(tensors):
                    raise NotStreamableError("the adapter trains more than updates of its layers")
                weights = open_weights(base, **options)
                if not self.allow_base_mismatch and facts["base_fingerprint"]:
                    require_base(str(folder), facts, weights.fingerprint())
            except NotStreamableError:
                if folder is None:
                    raise
                shard, where = 2 * 10**9, (temporary, folder, base)
                write_merged(*where, dtype, shard, self.allow_base_mismatch, options, saved=saved)
                weights, tensors = open_weights(str(temporary)), {}
                adapter = None
            self.answering = asked = Answering.of(base, self.prompts, options, folder, saved)
            vocabulary = self._vocabulary(asked, weights.model.config.vocab_size)
            merged = MergedTensors(weights, adapter, tensors, dtype)
            with atomic_file(out) as file:
                return write_model(file, merged, name, vocabulary, q8_0)
