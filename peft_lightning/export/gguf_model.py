"""A model as a GGUF file: merged, written, verified and quantised."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from peft_lightning.adapters.base_check import require_base
from peft_lightning.adapters.folder import SavedAdapter
from peft_lightning.adapters.lora.merge_extra_modules import has_extra_modules
from peft_lightning.adapters.lora.method import LoRA
from peft_lightning.adapters.merge import require_lora
from peft_lightning.base_model import load_tokenizer
from peft_lightning.base_model.load_errors import explained
from peft_lightning.base_model.resolve import locate
from peft_lightning.base_model.tokenizer import adapter_tokenizer
from peft_lightning.base_model.weights import NotStreamableError, open_weights
from peft_lightning.data import PromptFormat
from peft_lightning.export import llama_cpp
from peft_lightning.export.answering import Answering
from peft_lightning.export.gguf import write_model
from peft_lightning.export.gguf_layout import Layout
from peft_lightning.export.gguf_tokenizer import add_vocabulary, copy_vocabulary, require_known
from peft_lightning.export.merged_folder import write_merged
from peft_lightning.export.merged_weights import MergedTensors
from peft_lightning.export.ollama import write_modelfile
from peft_lightning.export.reference import LONGEST_ROW, Reference, logits_of, reference_of
from peft_lightning.export.unverified import UNFINISHED, UNVERIFIED, settle
from peft_lightning.export.verify import THRESHOLDS, compare_logits
from peft_lightning.files import atomic_file, atomic_text, scratch_folder

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

    def require_supported(self) -> None:
        """Raise UserError if llama.cpp lacks the architecture or the tokenizer, before any work."""
        source, where = locate(self.base, self.options["revision"])
        trust = self.options["trust_remote_code"]
        with explained("base model", self.base, where):
            config = AutoConfig.from_pretrained(source, trust_remote_code=trust, **where)
        Layout(config)
        if "gguf_file" not in where:
            own = adapter_tokenizer(self.base, self.folder, self.prompts.tokenizer, **self.options)
            require_known(own, self.pre)

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

        What is quantised to less than 8 bits is verified before, and its difference is said.

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
        if quantized in (None, Q8_0):
            layout, stored = self._merge(out, out.stem, dtype, quantized == Q8_0)
            print(f"exported: {out}, {out.stat().st_size:,} bytes{layout.of_context()}")
            print(write_modelfile(out, self.answering, is_adapter=False))
            limit = THRESHOLDS[torch.bfloat16 if quantized else stored]
            self._verify(out, str(out), mark, layout, limit)
            return
        with scratch_folder(out.with_name(f"{out.name}.unquantized")) as temporary:
            plain = temporary / "model.gguf"
            layout, stored = self._merge(plain, out.stem, None, False)
            reference = self._verify(plain, str(out), mark, layout, THRESHOLDS[stored])
            with atomic_file(out) as file:
                llama_cpp.quantize(plain, file, quantized)
        types = llama_cpp.tensor_types(out)
        print(f"exported: {out}, {out.stat().st_size:,} bytes, {types}{layout.of_context()}")
        print(write_modelfile(out, self.answering, is_adapter=False))
        if reference is not None:
            found = compare_logits(reference, llama_cpp.logits_of_file(str(out), reference.rows))
            print(f"{quantized} on {found}".replace(" merged, ", f" {quantized}, "))

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
            return None
        length = min(LONGEST_ROW, layout.context_length)
        atomic_text(mark, UNFINISHED)
        where = (self.text, self.device, self.options, length)
        reference = reference_of(self.base, self.folder, *where, saved=self.saved)
        if unread:
            limit = max(limit, llama_cpp.OWN_ROUNDING)
            logits = llama_cpp.logits_of_file(str(file), reference.rows)
        else:
            logits = logits_of(str(file), reference.rows, self.device, self.options)
        found = compare_logits(reference, logits)
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
        with scratch_folder(out.with_name(f"{out.name}.merged")) as temporary:
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
