"""CausalLMModule: a frozen causal LM, one adapter, and a loss that is exact to the token."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from peft_lightning.adapters import LoRA, disable_adapter
from peft_lightning.training import build_model, prediction, run_tokenizer
from peft_lightning.training.adapter_module import AdapterModule
from peft_lightning.training.answer_options import answer_options
from peft_lightning.training.clipping import clip
from peft_lightning.training.evaluation import with_source
from peft_lightning.training.given_base import AdapterOption, BaseModelOption, adapter_of, base_of
from peft_lightning.training.load_from_checkpoint import LoadsFromCheckpoint
from peft_lightning.training.lr_schedule import DEFAULT_SCHEDULE, LRScheduleOption
from peft_lightning.training.optimizer import configure_optimizers


class CausalLMModule(LoadsFromCheckpoint, AdapterModule):
    """Trains one adapter on a frozen causal language model.

    Override ``nll`` for another loss: it returns a sum and a count, so gradient accumulation and
    several processes stay exact. If rows have weights, ``batch["loss_weights"]`` are the tokens':
    weigh sum and count by them. The base stays in eval mode; only the adapter's dropout is active.

    Args:
        base_model: Hub id, local folder or GGUF file of a causal LM.
        adapter: What is trained: LoRA, OFT, MiSS, IA3, PromptTuning, PTuning, PrefixTuning, Partial
            or Full.
        learning_rate: Peak learning rate; by default that of the adapter.
        optimizer: A torch optimizer by class path; by default AdamW without weight decay.
        parameter_groups: Other optimizer options of some weights: {lora_B.weight: {lr_ratio: 16}}.
        lr_schedule: Cosine, Linear, Constant, a scheduler of torch, or a function of the step.
        dtype: Of the base: auto, float32, bfloat16 or float16. The adapter is always float32.
        quantization: 4bit or 8bit: the base's linear layers in so many bits, by bitsandbytes.
        activation_checkpointing: Recompute activations in the backward pass; do not keep them.
        compile: Compile the decoder layers; not for virtual tokens.
        cache_hidden_states: Run the layers below the adapter once a row; keep the outputs on disk.
        hidden_cache_gib: GiB of disk for them; the least recently used are removed.
        sample_prompts: Prompts whose greedy answers are logged at each validation.
        sample_max_new_tokens: Length limit of those answers.
        predict_max_new_tokens: Length limit of answers of ``predict`` and ``metrics``.
        stop: Strings that end an answer of ``predict``, ``metrics`` and ``sample_prompts``.
        metrics: Scores of answers to validation rows: [exact_match, rougeL].
        metric_rows: Rows of each source to answer for them; 0 for all.
        labels: Labels for likelihood_accuracy; without, all answers.
        label_score: Of a label's log-likelihoods: sum, or mean per token.
        attn_implementation: auto (one attention per sequence), or transformers' sdpa, eager, ...
        trust_remote_code: Whether code that comes with the base model may run.
        revision: Branch, tag or commit of a hub id.
        forgetting: Log the loss on general text: true, or a file of yours.
        router_aux_loss: Factor on experts' load-balancing loss; by default as the base's own loss.
        init_from: Train the adapter of a folder, ours or HF PEFT's, or ``owner/name@revision``.
    """

    def __init__(
        self,
        base_model: BaseModelOption,
        adapter: AdapterOption = LoRA(),  # noqa: B008  (frozen)
        learning_rate: float | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_schedule: LRScheduleOption = DEFAULT_SCHEDULE,
        dtype: str = "auto",
        activation_checkpointing: bool = False,
        compile: bool = False,
        cache_hidden_states: bool = False,
        hidden_cache_gib: float = 20.0,
        sample_prompts: list[str] | None = None,
        sample_max_new_tokens: int = 64,
        predict_max_new_tokens: int = 128,
        stop: list[str] | None = None,
        metrics: list[str] | None = None,
        metric_rows: int = 100,
        labels: list[str] | None = None,
        label_score: str = "sum",
        attn_implementation: str = "auto",
        trust_remote_code: bool = False,
        revision: str | None = None,
        init_from: str | None = None,
        quantization: str | None = None,
        forgetting: bool | str = False,
        router_aux_loss: float | None = None,
        parameter_groups: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.configured_adapter = adapter = adapter_of(adapter)
        self.init_from, adapter, prompts = build_model.adapter_to_train(adapter, init_from)
        build_model.check_options(
            adapter, learning_rate, activation_checkpointing, parameter_groups
        )
        self.base_model_name, self.given_base = base_of(base_model, dtype, quantization, revision)
        self.revision, self.adapter = revision, adapter
        self.learning_rate = adapter.learning_rate if learning_rate is None else learning_rate
        self.given_learning_rate, self.lr_schedule = learning_rate, lr_schedule
        self.optimizer, self.prompt_format = optimizer, prompts
        self.dtype_name, self.quantization = dtype, quantization
        self.activation_checkpointing, self.compile_layers = activation_checkpointing, compile
        self.cache_hidden_states, self.hidden_cache_gib = cache_hidden_states, hidden_cache_gib
        self.forgetting, self.sample_prompts = forgetting, sample_prompts or []
        self.router_aux_loss, self.parameter_groups = router_aux_loss, parameter_groups
        self.sample_max_new_tokens = sample_max_new_tokens
        self.predict_max_new_tokens, self.stop = predict_max_new_tokens, tuple(stop or ())
        self.answer_options = answer_options(metrics, metric_rows, labels, label_score)
        self.attn_implementation, self.trust_remote_code = attn_implementation, trust_remote_code
        self.model: Any = None  # set by build_model, as the loss is
        self.outputs: Any = None
        self.tokenizer: Any = None
        self.fingerprint: dict[str, Any] | None = None
        self.bank: Any = None  # the adapters that predict uses, if it uses several
        self.answer_folders: dict[str, str] = {}
        self.correct: Tensor | None = None  # correct predictions of the last nll, if it counts them

    def configure_model(self) -> None:
        """Load the base, freeze it and attach the adapter; once, however often it is called."""
        if self.model is None:
            build_model.build_model(self)

    def load_tokenizer(self) -> Any:
        """Return the base's tokenizer with the adapter's new tokens; it is loaded once."""
        return run_tokenizer.tokenizer_of(self)

    def extend_tokenizer(self, tokenizer: Any) -> None:
        """Add the adapter's new tokens to another tokenizer that the data goes through."""
        run_tokenizer.extend_tokenizer(self, tokenizer)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        return configure_optimizers(self, CausalLMModule)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that the optimizer updates."""
        return [p for p in self.parameters() if p.requires_grad]

    def nll(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the summed loss in nats and the tokens in it, both weighted by their weights."""
        nll, tokens, self.correct = self.outputs.nll(batch)
        return nll, tokens

    def labelled_logits(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the logits before the labelled tokens, (N, V) float32, and those tokens, (N,)."""
        return self.outputs.logits(batch)

    def labelled_weights(self, batch: dict[str, Any]) -> Tensor:
        """Return the weights of the tokens of ``labelled_logits``, (N,); 1 where rows have none."""
        return self.outputs.weights(batch)

    def labelled_sequences(self, batch: dict[str, Any]) -> Tensor:
        """Return which sequence of the batch each token of ``labelled_logits`` is in, (N,)."""
        return self.outputs.sequences(batch)

    def disable_adapter(self) -> AbstractContextManager[None]:
        """Return a context in which the module computes what its base does, as in HF PEFT."""
        return disable_adapter(self.model)

    def loss_path(self) -> str:
        """Return how the loss is computed, for the table at a run's start."""
        return self.outputs.path()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        return self.mean_loss(*self.nll(batch), batch)

    def mean_loss(self, nll: Tensor, tokens: Tensor | float, batch: Any) -> Tensor:
        """Return the mean loss per token of a batch, for a ``training_step`` to return.

        Its tokens are counted: the gradient of an optimizer step is that of the mean over all its
        tokens, whatever its micro-batches and processes.
        """
        return self.step_sums.mean(nll, tokens, batch)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        clip(optimizer, gradient_clip_val, gradient_clip_algorithm, self.step_sums.norm)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.correct, batch = None, with_source(self.trainer, batch, dataloader_idx)
        self.evaluation.update(*self.nll(batch), self.correct, batch)  # which nll has set

    test_step = validation_step

    def answer_with(self, folders: list[str]) -> list[str]:
        """Let ``predict`` use the adapters of ``folders``, NAME=FOLDER each; return the names."""
        return prediction.answer_with(self, folders)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[dict[str, Any]]:
        return prediction.predict_batch(self, batch)

    def generate(
        self, prompts: list[list[int]] | list[str], max_new_tokens: int = 128, **options: Any
    ) -> list[str]:
        """Return the greedy answers to prompts: texts (in the chat template) or token ids.

        The options are those of ``generate_tokens``, such as ``temperature`` and ``seed``.
        """
        return prediction.generate_texts(self, prompts, max_new_tokens, **options)
