"""Names of options in other training tools, and what does the same here: for error messages."""

from __future__ import annotations

from dataclasses import dataclass

AXOLOTL, FACTORY, SWIFT, TUNE = "axolotl", "LLaMA-Factory", "ms-swift", "torchtune"
HF = "transformers and TRL"


@dataclass(frozen=True)
class ForeignName:
    """The name of an option in other tools.

    Args:
        tools: The tools that have it.
        option: Our option of this purpose; empty if none is needed or there is none.
        remark: What differs, or why there is none.
    """

    tools: str
    option: str
    remark: str = ""

    def __str__(self) -> str:
        use = f"here {self.option}" if self.option else ""
        return f"of {self.tools}; " + ": ".join(filter(None, [use, self.remark]))


PACKING = "rows are always packed, without padding; 8192 fills a batch up to 8,192 tokens"
CHECKPOINTS = "trainer.callbacks: [{class_path: AdapterCheckpoint, init_args: {every_n_steps: 50}}]"
ADAPTER = "model.adapter.class_path"

# names, tools, our option, remark
_TABLE: list[tuple[str, str, str, str]] = [
    # batches
    ("sample_packing eval_sample_packing", AXOLOTL, "data.tokens_per_batch", PACKING),
    ("packing", f"TRL, {FACTORY} and {SWIFT}", "data.tokens_per_batch", PACKING),
    ("packing_strategy eval_packing padding_free", "TRL", "data.tokens_per_batch", PACKING),
    ("neat_packing", FACTORY, "data.tokens_per_batch", PACKING),
    ("packed", TUNE, "data.tokens_per_batch", PACKING),
    ("pad_to_sequence_len", AXOLOTL, "", "batches have no padding"),
    ("group_by_length", HF, "", "batches have no padding, so rows of unequal length cost nothing"),
    ("micro_batch_size", AXOLOTL, "data.batch_size", "rows per batch and device"),
    ("per_device_train_batch_size", HF, "data.batch_size", "rows per batch and device"),
    ("train_batch_size", "DeepSpeed", "data.batch_size", "rows per batch and device"),
    ("per_device_eval_batch_size", HF, "data.val_batch_size", ""),
    ("eval_batch_size", AXOLOTL, "data.val_batch_size", ""),
    ("gradient_accumulation_steps", HF, "trainer.accumulate_grad_batches", ""),
    ("auto_find_batch_size", HF, "data.batch_size", "it is not searched for"),
    ("dataloader_num_workers", HF, "data.num_workers", ""),
    ("shuffle_merged_datasets", AXOLOTL, "data.shuffle", ""),
    ("dataset_shuffle train_dataloader_shuffle", SWIFT, "data.shuffle", ""),
    ("data_seed", HF, "data.seed", ""),
    # lengths
    ("max_seq_length", "TRL and unsloth", "data.max_length", ""),
    ("max_seq_len", TUNE, "data.max_length", ""),
    ("sequence_len", AXOLOTL, "data.max_length", ""),
    ("cutoff_len", FACTORY, "data.max_length", ""),
    ("model_max_length", HF, "data.max_length", ""),
    ("block_size", HF, "data.max_length", "rows are never joined and cut into blocks"),
    ("excess_length_strategy", AXOLOTL, "data.truncation", ""),
    ("truncation_strategy", SWIFT, "data.truncation", ""),
    # sources
    ("datasets", AXOLOTL, "data.train", "a path, a list of paths, or paths with their shares"),
    ("dataset", f"{FACTORY}, {SWIFT} and {TUNE}", "data.train", "paths or hub data sets"),
    ("dataset_name dataset_path train_file", HF, "data.train", "a path or owner/name of the hub"),
    ("data_path data_files train_data", TUNE, "data.train", "a path, or several"),
    ("test_datasets", AXOLOTL, "data.val", "a list of paths, or names with paths"),
    ("eval_dataset", f"{HF} and {FACTORY}", "data.val", "paths, or names with paths"),
    ("val_dataset", SWIFT, "data.val", "paths, or names with paths"),
    ("eval_file validation_file", HF, "data.val", ""),
    ("val_set_size", AXOLOTL, "data.val_fraction", "a fraction of the rows; 0 for none"),
    ("val_size", FACTORY, "data.val_fraction", "a fraction of the rows; 0 for none"),
    ("split_dataset_ratio", SWIFT, "data.val_fraction", ""),
    ("test_split_size", "TRL", "data.val_fraction", ""),
    ("max_samples", FACTORY, "data.max_rows", "the first rows of each source"),
    ("max_train_samples max_eval_samples", HF, "data.max_rows", "the first rows of each source"),
    ("interleave_probs", FACTORY, "data.train", "{a.jsonl: 0.7, b.jsonl: 0.3} are shares"),
    ("interleave_prob", SWIFT, "data.train", "{a.jsonl: 0.7, b.jsonl: 0.3} are shares"),
    ("probabilities", "datasets", "data.train", "{a.jsonl: 0.7, b.jsonl: 0.3} are shares"),
    ("weights dataset_weights", TUNE, "data.train", "{a.jsonl: 0.7, b.jsonl: 0.3} are shares"),
    ("dataset_mixer", "the alignment handbook", "data.train", "{a.jsonl: 1, b.jsonl: 0.5} repeats"),
    ("mix_strategy", FACTORY, "data.stopping_strategy", "all_exhausted is interleave_over"),
    ("dataset_text_field", "TRL", "data.columns", "{text: NAME}"),
    ("column_map", TUNE, "data.columns", "{prompt: question, completion: answer}"),
    ("dataset_num_proc", "TRL and ms-swift", "", "rows are tokenized once, and kept on disk"),
    ("preprocessing_num_workers", FACTORY, "", "rows are tokenized once, and kept on disk"),
    ("overwrite_cache", FACTORY, "", "tokens are made again when files or options change"),
    ("dataset_prepared_path", AXOLOTL, "data.cache_dir", ""),
    ("streaming lazy_tokenize", f"{HF} and {SWIFT}", "", "tokens are read from disk as needed"),
    ("dataset_dir", FACTORY, "data.train", "a path may be a folder"),
    ("formatting conversation_style", f"{FACTORY} and {TUNE}", "data.format", ""),
    ("formatting_func", "TRL", "data.format", "the dotted path of a function"),
    ("remove_unused_columns", HF, "", "columns that are not used are named at the start"),
    # what is trained
    ("train_on_inputs", AXOLOTL, "data.train_on", "all trains the prompts too"),
    ("train_on_input", TUNE, "data.train_on", "all trains the prompts too"),
    ("train_on_prompt", FACTORY, "data.train_on", "all trains the prompts too"),
    ("assistant_only_loss", "TRL", "data.train_on", "assistant is the default"),
    ("completion_only_loss", "TRL", "data.train_on", "assistant is the default"),
    ("mask_history", FACTORY, "data.train_on", "last trains the last answer alone"),
    ("roles_to_train", AXOLOTL, "data.train_on", "assistant, last or all"),
    ("train_on_eos", AXOLOTL, "", "the end of each trained turn is always trained"),
    ("loss_scale", SWIFT, "data.train_on", "a turn may have a weight"),
    ("template", f"{FACTORY} and {SWIFT}", "data.chat_template", "a Jinja file"),
    ("chat_template_path", "TRL", "data.chat_template", ""),
    ("default_system new_system_prompt", f"{FACTORY} and {TUNE}", "data.system_prompt", ""),
    ("enable_thinking", FACTORY, "data.chat_template_kwargs", "{enable_thinking: false}"),
    ("special_tokens", AXOLOTL, "model.adapter.new_tokens", "the tokenizer's own are kept"),
    # the model and its adapter
    ("model_name_or_path", f"{HF} and {FACTORY}", "model.base_model", ""),
    ("model_id", SWIFT, "model.base_model", ""),
    ("adapter_name_or_path lora_model_dir", f"{FACTORY} and {AXOLOTL}", "model.init_from", ""),
    ("finetuning_type", FACTORY, ADAPTER, "LoRA, or Full for all weights"),
    ("train_type tuner_type", SWIFT, ADAPTER, "LoRA, or Full for all weights"),
    ("use_peft", "TRL", ADAPTER, "an adapter is always trained; Full for all weights"),
    ("peft_type peft_method", "PEFT", ADAPTER, "LoRA, PromptTuning, ..."),
    ("lora_r", f"{AXOLOTL} and TRL", "model.adapter.r", ""),
    ("lora_rank", f"{FACTORY}, {SWIFT} and {TUNE}", "model.adapter.r", ""),
    ("lora_alpha", "other tools", "model.adapter.lora_alpha", ""),
    ("lora_dropout", "other tools", "model.adapter.lora_dropout", ""),
    ("lora_target_modules", f"{AXOLOTL} and TRL", "model.adapter.target_modules", ""),
    ("lora_target", FACTORY, "model.adapter.target_modules", "all-linear is the default"),
    ("lora_target_linear", AXOLOTL, "model.adapter.target_modules", "all-linear is the default"),
    ("lora_attn_modules", TUNE, "model.adapter.target_modules", ""),
    ("apply_lora_to_mlp", TUNE, "model.adapter.target_modules", "all-linear is the default"),
    ("lora_modules_to_save", f"{AXOLOTL} and TRL", "model.adapter.modules_to_save", ""),
    ("additional_target", FACTORY, "model.adapter.modules_to_save", ""),
    ("peft_use_dora", AXOLOTL, "model.adapter.use_dora", ""),
    ("peft_use_rslora", AXOLOTL, "model.adapter.use_rslora", ""),
    ("pissa_init", FACTORY, "model.adapter.init_lora_weights", "pissa"),
    ("load_in_4bit", f"{HF} and {AXOLOTL}", "model.quantization", "4bit"),
    ("load_in_8bit", f"{HF} and {AXOLOTL}", "model.quantization", "8bit"),
    ("quantization_bit quant_bits", f"{FACTORY} and {SWIFT}", "model.quantization", "4bit or 8bit"),
    ("torch_dtype", HF, "model.dtype", ""),
    ("attn_impl flash_attn", f"{SWIFT} and {FACTORY}", "model.attn_implementation", ""),
    ("flash_attention sdp_attention", AXOLOTL, "model.attn_implementation", "auto is the default"),
    ("gradient_checkpointing", HF, "model.activation_checkpointing", ""),
    ("enable_activation_checkpointing", TUNE, "model.activation_checkpointing", ""),
    ("torch_compile", HF, "model.compile", ""),
    # optimization
    ("num_train_epochs", HF, "trainer.max_epochs", ""),
    ("num_epochs", AXOLOTL, "trainer.max_epochs", ""),
    ("epochs n_epochs", TUNE, "trainer.max_epochs", ""),
    ("max_steps_per_epoch", TUNE, "trainer.limit_train_batches", ""),
    ("lr", TUNE, "model.learning_rate", ""),
    ("optim optim_args", HF, "model.optimizer", "{class_path: torch.optim.AdamW}"),
    ("weight_decay adam_beta1 adam_beta2 adam_epsilon", HF, "model.optimizer", "its init_args"),
    (
        "loraplus_lr_ratio",
        f"PEFT, {AXOLOTL} and {FACTORY}",
        "model.parameter_groups",
        "{lora_B.weight: {lr_ratio: 16}}",
    ),
    ("freeze_trainable_layers", FACTORY, ADAPTER, "Partial with last_layers"),
    ("unfrozen_parameters", AXOLOTL, ADAPTER, "Partial with target_parameters"),
    ("lr_scheduler_type lr_scheduler", HF, "model.lr_schedule", "Cosine, Linear or Constant"),
    ("warmup_ratio warmup_steps", HF, "model.lr_schedule.warmup", "a fraction of the steps"),
    ("num_warmup_steps", TUNE, "model.lr_schedule.warmup", "a fraction of the steps"),
    ("max_grad_norm", HF, "trainer.gradient_clip_val", ""),
    ("clip_grad_norm", TUNE, "trainer.gradient_clip_val", ""),
    ("neftune_noise_alpha", HF, "", "there is no noise on embeddings"),
    ("label_smoothing_factor", HF, "", "a subclass of CausalLMModule with its own nll does it"),
    ("bf16 fp16", HF, "trainer.precision", "without, chosen for the machine"),
    # the run
    ("output_dir", HF, "trainer.default_root_dir", ""),
    ("logging_steps", HF, "trainer.log_every_n_steps", ""),
    ("eval_steps", HF, "trainer.val_check_interval", "in batches"),
    ("evals_per_epoch", AXOLOTL, "trainer.val_check_interval", "0.25 is four times an epoch"),
    ("eval_strategy evaluation_strategy", HF, "trainer.val_check_interval", "1.0, each epoch"),
    ("save_steps save_strategy", HF, "", CHECKPOINTS),
    ("saves_per_epoch", AXOLOTL, "", CHECKPOINTS),
    ("save_total_limit load_best_model_at_end", HF, "", "last.ckpt and best.ckpt are kept"),
    ("resume_from_checkpoint", HF, "ckpt_path", "last, best or a folder"),
    ("report_to", HF, "trainer.logger", "CSV and TensorBoard are the default"),
    ("wandb_project", AXOLOTL, "trainer.logger", "lightning.pytorch.loggers.WandbLogger"),
    ("early_stopping_patience", AXOLOTL, "trainer.callbacks", "EarlyStopping"),
    ("push_to_hub hub_model_id", HF, "", "the command push does it"),
    ("stage do_train do_eval do_predict", f"{HF} and {FACTORY}", "", "they are commands"),
    ("use_cpu no_cuda", HF, "trainer.accelerator", "cpu"),
    ("deepspeed fsdp fsdp_config", HF, "trainer.strategy", "ddp or fsdp2"),
]  # fmt: skip

FOREIGN_NAMES = {
    name: ForeignName(tools, option, remark)
    for names, tools, option, remark in _TABLE
    for name in names.split()
}


def foreign_name(name: str) -> ForeignName | None:
    """Return what an option of another tool is called here, None if no tool is known to have it."""
    return FOREIGN_NAMES.get(name.lower().replace("-", "_"))
