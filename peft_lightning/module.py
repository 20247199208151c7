"""CausalLMModule: a frozen causal LM, one adapter, and a loss that is exact to the token."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torchmetrics import MeanMetric
from transformers import PreTrainedTokenizerBase

from peft_lightning.adapters import Adapter, Full, LoRA
from peft_lightning.adapters.bank import AdapterBank
from peft_lightning.adapters.base import attached_adapter
from peft_lightning.adapters.folder import adapter_files, read_adapter, read_adapter_config
from peft_lightning.base_model import (
    base_fingerprint,
    load_base_model,
    load_tokenizer,
)
from peft_lightning.hidden_cache.cache import cache_of_run, leaves_inputs
from peft_lightning.inference.generate import generate_texts
from peft_lightning.inference.load import named_folders
from peft_lightning.kernels.activation_checkpointing import recompute_activations
from peft_lightning.kernels.attention import FLAT_ATTENTION
from peft_lightning.kernels.compiled_layers import compile_layers
from peft_lightning.kernels.float32_compute import compute_as_the_run
from peft_lightning.kernels.gated_mlp import fuse_gated_mlps
from peft_lightning.kernels.rms_norm import fuse_norms
from peft_lightning.kernels.rotary import fuse_rotary
from peft_lightning.loss import CausalLMLoss
from peft_lightning.training import clipping
from peft_lightning.training.callbacks import default_callbacks
from peft_lightning.training.checkpoint import AdapterCheckpointIO
from peft_lightning.training.cluster.fsdp2 import gather_full, shard_like
from peft_lightning.training.cluster.strategies import require_supported
from peft_lightning.training.optimizer import build_optimizer, own_options
from peft_lightning.training.precision import (
    precision_of_run,
    say_if_changed,
    say_if_emulated,
    settle_resources,
    types_used,
)
from peft_lightning.training.run_identity import check_same_run, run_name
from peft_lightning.training.sanity_checks import SanityChecks
from peft_lightning.training.schedules import Cosine, Schedule, ScheduledLR
from peft_lightning.training.warm_start import adapter_to_continue, attach_trained

Batch = dict[str, Any]

LOSS_UNIT = 1024.0  # a power of two, so exact: keeps gradients of a sum in float16's range


class CausalLMModule(L.LightningModule):
    """Trains one adapter on a frozen causal language model.

    Override ``nll`` for another loss: it returns a sum and a count, so gradient accumulation and
    several processes stay exact. The base model stays in eval mode (its own dropout is off);
    only the adapter's dropout is active.

    Args:
        base_model: Hub id, local folder or GGUF file of a causal LM.
        adapter: What is trained: LoRA, PromptTuning, Full; PTuning or PrefixTuning, from a folder.
        learning_rate: Peak learning rate; by default the one its adapter recommends.
        optimizer: A torch optimizer by class path; by default AdamW without weight decay.
        lr_schedule: Factor on the learning rate over the run.
        dtype: Of the base's frozen weights: auto (that of the products), float32, bfloat16 or
            float16. The adapter's own are float32.
        quantization: 4bit or 8bit: the base's linear layers in so many bits, by bitsandbytes.
        activation_checkpointing: Recompute each layer in the backward pass instead of keeping
            its activations.
        compile: Compile the decoder layers with torch.compile; not for methods that put virtual
            tokens before the text.
        cache_hidden_states: Run the layers below the adapter once for each row, keep their outputs
            on disk beside the tokens, and train from them.
        hidden_cache_gib: Most that such files may take on that disk, in GiB; those used last
            longest ago make room for new ones.
        sample_prompts: Prompts whose greedy answers are logged at each validation.
        sample_max_new_tokens: Length limit of those answers.
        predict_max_new_tokens: Length limit of the answers of ``predict``.
        attn_implementation: auto (flat batches, one attention per sequence) or a name that
            transformers knows, such as sdpa, eager, flash_attention_2.
        trust_remote_code: Whether code that comes with the base model may run.
        revision: Branch, tag or commit of a hub id.
        init_from: Start from the weights of an adapter's folder, ours or HF PEFT's, or of
            ``owner/name@revision`` on the hub; the adapter is the one in there.
    """

    def __init__(
        self,
        base_model: str,
        adapter: Adapter = LoRA(),  # noqa: B008  (frozen)
        learning_rate: float | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_schedule: Schedule = Cosine(),  # noqa: B008  (frozen)
        dtype: str = "auto",
        activation_checkpointing: bool = False,
        compile: bool = False,
        cache_hidden_states: bool = False,
        hidden_cache_gib: float = 20.0,
        sample_prompts: list[str] | None = None,
        sample_max_new_tokens: int = 64,
        predict_max_new_tokens: int = 128,
        attn_implementation: str = "auto",
        trust_remote_code: bool = False,
        revision: str | None = None,
        init_from: str | None = None,
        quantization: str | None = None,
    ) -> None:
        super().__init__()
        self.init_from, self._configured_adapter = None, adapter
        if init_from is not None:
            self.init_from, adapter = adapter_to_continue(init_from)
        if learning_rate is not None and learning_rate < 0:
            raise ValueError(f"learning_rate must not be negative, got {learning_rate}")
        if activation_checkpointing and adapter.uses_kv_cache:
            raise ValueError(
                f"activation_checkpointing does not go with {type(adapter).__name__}, whose keys "
                "and values reach the layers through a cache: set it to false"
            )
        self.base_model_name = base_model
        self.adapter = adapter
        self.learning_rate = adapter.learning_rate if learning_rate is None else learning_rate
        self.optimizer = optimizer
        self.lr_schedule = lr_schedule
        self.dtype_name, self.quantization = dtype, quantization
        self.activation_checkpointing = activation_checkpointing
        self.compile_layers = compile
        self.cache_hidden_states, self.hidden_cache_gib = cache_hidden_states, hidden_cache_gib
        self.sample_prompts = sample_prompts or []
        self.sample_max_new_tokens = sample_max_new_tokens
        self.predict_max_new_tokens = predict_max_new_tokens
        self.attn_implementation = attn_implementation
        self.trust_remote_code = trust_remote_code
        self.revision = revision
        self.model: Any = None
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.fingerprint: dict[str, Any] | None = None
        self._folders: dict[str, str] = {}
        self.bank: AdapterBank | None = None  # of the adapters that predict is to answer with
        self.correct: Tensor | None = None  # correct predictions of the last nll, if it counts them
        self._step_nll: Tensor | float = 0.0
        self._step_tokens: Tensor | int = 0
        self.val_nll, self.val_hits = MeanMetric(), MeanMetric()

    # ---- building -----------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Load the base, freeze it and attach the adapter; once, however often it is called."""
        if self.model is not None:
            return
        automatic = self.attn_implementation == "auto"
        model = load_base_model(
            self.base_model_name,
            dtype=self.dtype_name,
            attn_implementation=FLAT_ATTENTION if automatic else self.attn_implementation,
            trust_remote_code=self.trust_remote_code,
            revision=self.revision,
            quantization=self.quantization,
            frozen=not self.adapter.trains_base,
            **precision_of_run(self._trainer),
        )
        say_if_emulated(model)
        self.load_tokenizer()
        self.fingerprint = base_fingerprint(model)
        compute_as_the_run(model, self._trainer)
        if not self.compile_layers:  # the compiler fuses them itself
            fuse_norms(model)
            fuse_gated_mlps(model)
            fuse_rotary(model)
        if self._folders:
            self.model, self.bank = model, AdapterBank(model, self.fingerprint)
            for name, folder in self._folders.items():
                self.bank.add(name, folder)
            return
        if self.init_from is None:
            self.adapter.attach(model)
        else:
            given = self._configured_adapter
            self.adapter = attach_trained(model, self.init_from, given, self.fingerprint)
        if self.compile_layers:
            if not leaves_inputs(self.adapter):
                raise ValueError(
                    f"compile: true does not go with {type(self.adapter).__name__}, whose virtual "
                    "tokens change what is compiled: set model.compile to false"
                )
            compile_layers(model)
        if self.activation_checkpointing:
            recompute_activations(model)
        self.model = model
        shares_prefix = leaves_inputs(self.adapter) and not self.compile_layers
        self.outputs = CausalLMLoss(model, self.adapter, shares_prefix)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the base's tokenizer with the adapter's new tokens.

        Loaded once, by the data module before the model is.
        """
        if self.tokenizer is None:
            self.tokenizer = load_tokenizer(
                self.base_model_name,
                trust_remote_code=self.trust_remote_code,
                revision=self.revision,
            )
            self.adapter = self.adapter.with_tokenizer(self.tokenizer)
        return self.tokenizer

    def extend_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Add the adapter's new tokens to another tokenizer that the data goes through."""
        self.load_tokenizer()  # whose ids are the model's
        self.adapter.with_tokenizer(tokenizer)

    def answer_with(self, folders: list[str]) -> list[str]:
        """Let ``predict`` use the adapters of ``folders`` instead of the one that is trained.

        Args:
            folders: ``NAME=FOLDER`` each; a folder alone is its own name.

        Returns:
            The names, one of which is the ``adapter`` of each batch; ``base`` is none.

        Raises:
            ValueError: If one brings new tokens: all rows go through the base's tokenizer.
        """
        self._folders = named_folders(folders)
        for name, folder in self._folders.items():
            if read_adapter_config(folder)[0].metadata().get("new_tokens"):
                raise ValueError(
                    f"the adapter {name} brings new tokens, and predict reads all rows by the "
                    f"base's tokenizer: use generate --file FILE --adapter {name}={folder}"
                )
        return list(self._folders)

    def setup(self, stage: str) -> None:
        """Make every checkpoint of this trainer an adapter folder."""
        require_supported(self.trainer.strategy)
        settle_resources(self.trainer)
        warnings.filterwarnings("ignore", ".*in eval mode at the start of training.*")  # wanted
        self.trainer.strategy.checkpoint_io = AdapterCheckpointIO()

    def configure_callbacks(self) -> list[Callback]:
        """Return what exact resume and a readable run need, unless the trainer has its own."""
        return default_callbacks(self.trainer.callbacks)  # type: ignore[attr-defined]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        steps = self.trainer.estimated_stepping_batches
        optimizer = build_optimizer(self, clipping.has_own_clipping(self, CausalLMModule))
        self._configured_groups = own_options(optimizer)
        schedule = ScheduledLR(optimizer, self.lr_schedule, steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that the optimizer updates."""
        return [p for p in self.parameters() if p.requires_grad]

    # ---- the loss -----------------------------------------------------------------------------

    def nll(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the summed loss of ``batch`` in nats and the number of tokens it covers."""
        nll, tokens, self.correct = self.outputs.nll(batch)
        return nll, tokens

    def labelled_logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the logits that predict labelled tokens, (N, V), and those tokens, (N,).

        What another loss in ``nll`` starts from; the default one never holds all of them.
        """
        return self.outputs.logits(batch)

    def loss_path(self) -> str:
        """Return how the loss is computed, for the table at a run's start."""
        return self.outputs.path()

    # ---- training -----------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        nll, tokens = self.nll(batch)
        self._step_nll = self._step_nll + nll.detach().double()
        self._step_tokens = self._step_tokens + tokens
        return nll / LOSS_UNIT  # a sum: on_before_optimizer_step makes its gradient the mean's

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide by the tokens of the whole step, so that micro-batches and ranks do not matter.

        Lightning has divided the sum by the micro-batches of a step, and DDP by the ranks; a mean
        per micro-batch would weigh tokens of short micro-batches more (Lightning issue 20350).
        """
        sums = (self._step_nll, self._step_tokens)
        totals = torch.stack([torch.as_tensor(x, device=self.device).double() for x in sums])
        nll, tokens = self.trainer.strategy.reduce(totals, reduce_op="sum").tolist()
        self._step_nll, self._step_tokens = 0.0, 0
        micro_batches, ranks = self.trainer.accumulate_grad_batches, self.trainer.world_size
        scale = LOSS_UNIT * micro_batches * ranks / max(1.0, tokens)
        grads = [p.grad for p in self.trainable_parameters() if p.grad is not None]
        clip_val = self.trainer.gradient_clip_val if self._clips_with_rescale() else None
        norm = clipping.rescale(grads, scale, clip_val)
        self.log("train/loss", nll / max(1.0, tokens), prog_bar=True, rank_zero_only=True)
        self.log("grad_norm", norm, rank_zero_only=True)
        SanityChecks.check_step(self, nll, int(tokens), norm)

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the trainer says, unless ``on_before_optimizer_step`` has done it already.

        An override takes the place of both.
        """
        if not self._clips_with_rescale():
            clipping.clip(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def _clips_with_rescale(self) -> bool:
        return clipping.clips_with_rescale(self, CausalLMModule)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Let go of the gradients after the step: the next forward pass needs their memory."""
        super().optimizer_step(*args, **kwargs)
        self.zero_grad()

    def on_fit_start(self) -> None:
        """Open or compute what the frozen layers make of the rows, if that is wanted."""
        if self.cache_hidden_states:
            self.outputs.frozen = cache_of_run(self)

    def on_train_start(self) -> None:
        """Let the configuration win over what a checkpoint remembers of the optimizer."""
        for optimizer in self.trainer.optimizers:
            for group, configured in zip(
                optimizer.param_groups, self._configured_groups, strict=True
            ):
                group.update(configured)

    # ---- evaluation ---------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch)

    def _evaluate(self, batch: Batch) -> None:
        self.correct = None
        nll, tokens = self.nll(batch)
        count = max(1, int(tokens))  # a process without rows takes part in the mean all the same
        self.val_nll.update(nll / count, weight=tokens)
        if self.correct is not None:
            self.val_hits.update(self.correct / count, weight=tokens)

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test")

    def _log_evaluation(self, stage: str) -> None:
        if self.val_nll.update_called:
            loss = self.val_nll.compute()
            values = {f"{stage}/loss": loss, f"{stage}/perplexity": loss.exp()}
            if self.val_hits.update_called:
                values[f"{stage}/accuracy"] = self.val_hits.compute()
            for name, value in values.items():
                self.log(name, value, prog_bar=name == "val/loss")
        self.val_nll.reset()
        self.val_hits.reset()

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """Return the greedy answer to each prompt of ``batch``, with the prompt's index."""
        rows = [
            ids[mask.bool()].tolist()
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]
        by = {"adapter": batch["adapter"]} if self.bank is not None else {}
        if self.bank is not None:
            self.bank.use(batch["adapter"])
        answers = self.generate(rows, self.predict_max_new_tokens)
        return [{"index": i, "text": t, **by} for i, t in zip(batch["index"], answers, strict=True)]

    def generate(
        self, prompts: list[list[int]] | list[str], max_new_tokens: int = 128
    ) -> list[str]:
        """Return the greedy answers to prompts: texts (in the chat template) or token ids."""
        adapter = attached_adapter(self.model)
        return generate_texts(self.model, adapter, self.load_tokenizer(), prompts, max_new_tokens)

    # ---- state --------------------------------------------------------------------------------

    def state_dict(self, *args: Any, prefix: str = "", **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """Return the adapter's tensors under HF PEFT's names; nothing of the frozen base."""
        tensors = self.adapter.state_dict(self.model)
        return {prefix + name: gather_full(tensor) for name, tensor in tensors.items()}

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load the adapter's tensors; missing, unexpected and misshapen ones are an error."""
        own = self.adapter.state_dict(self.model)
        parts = {n: shard_like(t, own[n]) if n in own else t for n, t in state_dict.items()}
        self.adapter.load_state_dict(self.model, parts)
        return nn.modules.module._IncompatibleKeys([], [])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        facts = {
            "base_fingerprint": self.fingerprint,
            "step": checkpoint["global_step"],
            "run": run_name(self.trainer),
            **({"quantization": self.quantization} if self.quantization else {}),
            **(types := types_used(self)),
        }
        tensor_file, _, texts = adapter_files(self.adapter, self.model, facts, self.tokenizer)
        checkpoint["adapter_files"] = (tensor_file, texts)
        checkpoint["adapter"] = self._adapter_config()
        checkpoint["base_fingerprint"], checkpoint["types"] = self.fingerprint, types

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_same_run(checkpoint["adapter"], self._adapter_config())
        if checkpoint["base_fingerprint"] != self.fingerprint:
            raise ValueError(
                f"the checkpoint belongs to another base model: {checkpoint['base_fingerprint']} "
                f"there, {self.fingerprint} for {self.base_model_name}"
            )
        say_if_changed(checkpoint.get("types"), self)

    def _adapter_config(self) -> dict[str, Any]:
        return {**self.adapter.hf_config(self.model), **self.adapter.metadata()}

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, base_model: str | None = None, **kwargs: Any
    ) -> CausalLMModule:
        """Build a module with a trained adapter from a checkpoint or an adapter folder.

        Args:
            checkpoint_path: The folder.
            base_model: Where the base is, if not where it was when the adapter was trained.
            **kwargs: Further arguments of the constructor.
        """
        adapter, facts = read_adapter_config(Path(checkpoint_path))
        whole = isinstance(adapter, Full)
        kwargs |= {"adapter": adapter} if whole else {"init_from": str(checkpoint_path)}
        module = cls(base_model or facts["base_model"], **kwargs)
        module.configure_model()
        if whole:
            adapter.load_state_dict(module.model, read_adapter(checkpoint_path).tensors)
        return module
