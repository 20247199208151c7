"""Folders of adapters that other programs write: each situation, what is done here, and why.

``docs/adapters.md`` prints this table, and ``test_foreign_folders.py`` tries each of its rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foreign_folders import (
    CONFIG,
    PREFIX,
    as_bin,
    as_mlx,
    edit,
    in_parts,
    in_subfolders,
    of_compiled,
    of_zero3,
    rename,
    resized,
    retrained,
    row_changed,
    with_base,
    with_head,
    with_images,
    without_a_part,
)

READ, SAID, REFUSED = "read", "read, in a line", "refused"


@dataclass(frozen=True)
class Situation:
    """A folder that another program may have written.

    Args:
        what: What is in it, as the page has it.
        answer: READ, SAID or REFUSED.
        why: Why, or what to do instead, as the page has it.
        change: Makes it from HF PEFT's folder.
        said: Regular expression for the line, or the error.
        config: Of the ``LoraConfig`` of HF PEFT's folder; and ``save_embedding_layers``.
        base: Changes the base that HF PEFT trains.
        onto: Changes the base that the folder is loaded onto.
        models: On which it is tried.
    """

    what: str
    answer: str
    why: str
    change: Callable[[Path], None] = lambda folder: None
    said: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    base: Callable[[Any], None] | None = None
    onto: Callable[[Any], None] | None = None
    models: tuple[str, ...] = ("llama", "gpt2")


def one_target_more(folder: Path) -> None:
    targets = json.loads((folder / CONFIG).read_text())["target_modules"]
    edit(target_modules=[*targets, "wq"])(folder)


def only_needed(folder: Path) -> None:
    config = json.loads((folder / CONFIG).read_text())
    kept = ("peft_type", "r", "lora_alpha", "target_modules", "fan_in_fan_out")
    (folder / CONFIG).write_text(json.dumps({name: config[name] for name in kept}))


def other_values(model: Any) -> None:
    for parameter in model.parameters():
        parameter.data *= 1.1


def of_images_too(folder: Path) -> None:
    rename(r"model\.model\.", "model.model.language_model.")(folder)
    edit(target_modules=r".*language_model.*\.(q_proj|up_proj)")(folder)


def of_two(folder: Path) -> None:
    rename(r"(lora_A)\.", r"\1.one.")(folder)
    rename(r"(lora_B)\.", r"\1.two.")(folder)


MERGE = "load it with HF PEFT, or merge it there and give the merged model as the base"
MERGES = "load it with HF PEFT, or merge it"
EMPTY, START, WRAPPER = "empty: none", "says how training began", "a program's wrapper"
PASSED = "matches nothing: HF PEFT passes over it"
BASE = "give the base that the adapter was trained on"
CERTAIN = "where every tensor has a layer then, and in one way only; otherwise refused"
FILES_ROWS = "the file's rows are used, as in HF PEFT"
OTHERS = r"rows of \S+ are others in the file"
SAVED = {"save_embedding_layers": True}
THREE = ("llama", "qwen2", "gpt2")
ALL = ("llama", "qwen2", "gpt2", "phi3", "gemma3")
WTE = {"target_modules": ["c_attn", "wte"], "ensure_weight_tying": True}
SAVED_WTE = {"target_modules": ["c_attn"], "modules_to_save": ["wte"], "ensure_weight_tying": True}
ALONE = "ensure_weight_tying: the file has one of the two embeddings trained alone"
RENAMED = "the layers have other names in the file"
MLX = "matrices transposed, `lora_alpha` is `scale` times `rank`"


def option(name: str, value: Any, why: str, answer: str = READ, said: str = "") -> Situation:
    """Return the situation of a config that sets one key."""
    shown = f"`{name}: {json.dumps(value)}`"
    return Situation(shown, answer, why, edit(**{name: value}), said)


def not_done(name: str, value: Any) -> Situation:
    """Return the situation of a config that sets what is not implemented."""
    said = f"sets {name}.*{MERGES}"
    return Situation(f"`{name}`", REFUSED, f"not implemented: {MERGE}", edit(**{name: value}), said)


SITUATIONS = [
    Situation("HF PEFT's own folder", READ, "", models=ALL),
    option("layers_to_transform", [], EMPTY),
    option("layers_pattern", [], EMPTY),
    option("exclude_modules", [], EMPTY),
    option("exclude_modules", "", EMPTY),
    option("target_parameters", [], EMPTY),
    option("modules_to_save", [], EMPTY),
    option("rank_pattern", None, EMPTY),
    option("eva_config", {"rho": 2.0}, START),
    option("loftq_config", {"loftq_bits": 4}, START),
    option("corda_config", {"corda_method": "ipm"}, START),
    option("lora_ga_config", {"direction": "ArB2r"}, START),
    *(
        option(n, v, "ms-swift's: " + START)
        for n, v in (("lorap_emb_lr", 1e-6), ("lora_dtype", "x"))
    ),
    option("velora_config", {"num_groups": 4}, "says what training kept in memory"),
    *(option("init_lora_weights", how, START) for how in ("eva", "mica", "Gaussian", None, False)),
    option(
        "init_lora_weights",
        "lora_ga",
        "onto the base as it is, as in HF PEFT; what was subtracted at the start is in no file",
        SAID,
        "has subtracted an initial update from the base",
    ),
    *(
        option(
            "init_lora_weights",
            how,
            "what was subtracted from the base is in no file: save it again where it was trained, "
            "with `path_initial_model_for_weight_conversion`, or merge it there",
            REFUSED,
            "did not save: save it again where it was trained, with path_initial_model_for_weight",
        )
        for how in ("corda", "pissa_niter_4")
    ),
    option(
        "init_lora_weights",
        "loftq",
        "quantised weights took the place of the base's: give the base that was saved with it",
        REFUSED,
        "give the base that was saved with it, and set init_lora_weights to true",
    ),
    Situation(
        "PiSSA of HF PEFT",
        READ,
        "the part that it subtracts follows from the base",
        config={"init_lora_weights": "pissa"},
    ),
    Situation(
        "PiSSA of HF PEFT on the output embedding",
        READ,
        "the weight in the file is what PiSSA leaves of the base's",
        config={"init_lora_weights": "pissa", "target_modules": ["lm_head"]},
        models=("llama", "phi3"),
    ),
    Situation(
        "OLoRA of HF PEFT",
        READ,
        "the part that it subtracts follows from the base",
        config={"init_lora_weights": "olora"},
        models=("llama", "phi3"),
    ),
    Situation(
        "DoRA on an embedding",
        REFUSED,
        "not implemented: merge it with HF PEFT and give the merged model as the base",
        config={"use_dora": True, "target_modules": ["embed_tokens", "q_proj"]},
        said="use_dora takes linear layers only.*merged there: merge_and_unload",
        models=("llama",),
    ),
    Situation(
        "a config of `peft_type`, `r`, `lora_alpha` and `target_modules` alone",
        READ,
        "HF PEFT's defaults for all else",
        only_needed,
    ),
    option("task_type", "SEQ_CLS", "the tensors decide"),
    Situation(
        "the head of a classifier",
        REFUSED,
        "a causal LM has none: load it with the class that it was trained on",
        with_head,
        "holds score of modules_to_save, and this model has no .*class that it was trained on",
    ),
    option("rank_pattern", {"nothing": 3}, PASSED, SAID, "rank_pattern names what .*: nothing$"),
    option("alpha_pattern", {"^x$": 2}, PASSED, SAID, r"alpha_pattern names what .*: \^x\$$"),
    option("layers_to_transform", [0, 1, 7], PASSED, SAID, "layers_to_transform names what .*: 7$"),
    option(
        "modules_to_save",
        ["classifier"],
        PASSED,
        SAID,
        "modules_to_save names what .*: classifier$",
    ),
    Situation(
        "a name of `target_modules`",
        SAID,
        PASSED,
        one_target_more,
        "target_modules names what .*: wq$",
    ),
    Situation(
        "`lora_A.NAME.weight`: the adapter's name",
        READ,
        "no part of a layer's name",
        rename(r"(lora_[AB])\.", r"\1.some_name."),
        models=("llama", "gemma3"),
    ),
    Situation(
        "tensors of two adapters in one file",
        REFUSED,
        "save each by itself, `save_pretrained(FOLDER, selected_adapters=[NAME])`",
        of_two,
        "tensors of 2 adapters, one, two: save each",
    ),
    Situation("`module.` before the names", READ, WRAPPER, rename("^", "module.")),
    Situation("`_orig_mod.` before the names", READ, WRAPPER, rename("^", "_orig_mod.")),
    Situation("`base_model.model.` twice", READ, WRAPPER, rename("^", PREFIX)),
    Situation(
        "`_fsdp_wrapped_module.`, `_checkpoint_wrapped_module.` within the names",
        READ,
        WRAPPER,
        rename(r"(\.\d+\.)", r"\1_fsdp_wrapped_module._checkpoint_wrapped_module."),
    ),
    Situation("`_orig_mod.` in the names of `target_modules` too", READ, WRAPPER, of_compiled),
    Situation(
        "no `base_model.model.`", READ, "the model's own names", rename(re.escape(PREFIX), "")
    ),
    Situation(
        "names of a bare decoder, without `model.` or `transformer.`",
        SAID,
        CERTAIN,
        rename(r"(model|transformer)\.(layers|h)\.", r"\2."),
        RENAMED,
        models=("llama", "gpt2", "gemma3"),
    ),
    Situation(
        "`language_model.` or `model.language_model.` in the names",
        SAID,
        CERTAIN,
        of_images_too,
        RENAMED,
        models=("llama", "gemma3"),
    ),
    Situation(
        "likewise, and updates of zero of what sees images",
        SAID,
        "an update of zero changes nothing",
        with_images(0.0),
        "updates of zero for layers that are not here: model.visual.blocks.0.attn.q_proj",
        models=("llama", "gemma3"),
    ),
    Situation(
        "likewise, and other updates of what sees images",
        REFUSED,
        BASE,
        with_images(0.1),
        "unexpected in the file: .*give the base that it was trained on",
        models=("llama", "gemma3"),
    ),
    Situation(
        "layers that the model does not have",
        REFUSED,
        f"{BASE}; the names are listed",
        rename(r"layers\.1\.|h\.1\.", "layers.7."),
        "unexpected in the file: .*layers.7.*give the base that it was trained on",
    ),
    Situation("parts with `adapter_model.safetensors.index.json`", READ, "", in_parts),
    Situation(
        "parts of which one is not there",
        REFUSED,
        "copy all parts into the folder",
        without_a_part,
        "is not complete: .* names adapter_model-00002-of-00002.*copy all parts",
    ),
    Situation(
        "the base's own weights too, a full state dict",
        SAID,
        "they are compared with the model's",
        with_base,
        "the file holds 19 weights that this model has already",
        models=("llama",),
    ),
    Situation(
        "likewise, of another base",
        REFUSED,
        BASE,
        with_base,
        "brings its own base weight, .*q_proj.base_layer.weight.*load the base that",
        onto=other_values,
        models=("llama",),
    ),
    Situation(
        "empty tensors",
        REFUSED,
        "DeepSpeed's ZeRO 3 has divided them: convert its checkpoint by its `zero_to_fp32.py`",
        of_zero3,
        r"\d of \d tensors are empty, .*: DeepSpeed .* zero_to_fp32.py",
    ),
    Situation(
        "MLX's `adapters.safetensors` (mlx-lm)", READ, MLX, as_mlx(), models=("llama", "phi3")
    ),
    Situation(
        "MLX's, DoRA", READ, MLX, as_mlx(), config={"use_dora": True}, models=("llama", "phi3")
    ),
    Situation(
        "MLX's with `alpha` beside `scale`",
        REFUSED,
        "older releases multiply by both: write the whole factor as `scale` and leave `alpha` out",
        as_mlx(alpha=16),
        "scale 1.5 and alpha 16.*Write the factor .* as scale, and leave alpha out",
    ),
    Situation(
        "several adapters, each in a folder below",
        REFUSED,
        "give one of them",
        in_subfolders("a", "b"),
        "there are 2 adapters in it: give one of .*/a, .*/b",
    ),
    Situation(
        "one adapter in a folder below",
        REFUSED,
        "give that folder",
        in_subfolders("a"),
        "there is one in .*/a: give that folder",
    ),
    Situation(
        "`adapter_model.bin`",
        REFUSED,
        "a pickle, which can run code: the error has the line that converts it",
        as_bin,
        r"can run code .*: python -c \"import torch; .*weights_only=True",
    ),
    Situation(
        "embeddings that were saved as the vocabulary was resized, onto the plain base",
        READ,
        "the new rows are kept",
        config=SAVED,
        base=resized(1),
        models=THREE,
    ),
    Situation(
        "likewise, onto a base that was resized too",
        SAID,
        FILES_ROWS,
        config=SAVED,
        base=resized(1),
        onto=resized(2),
        said=f"4 of the 132 {OTHERS}",
        models=THREE,
    ),
    Situation(
        "embeddings that were trained beside the adapter and saved",
        SAID,
        FILES_ROWS,
        config=SAVED,
        base=retrained,
        said=f"128 of the 128 {OTHERS}",
        models=THREE,
    ),
    Situation(
        "one row of a saved embedding is another",
        SAID,
        FILES_ROWS,
        config=SAVED,
        base=row_changed,
        said=f"1 of the 128 {OTHERS}",
        models=THREE,
    ),
    Situation(
        "a base weight under LoRA that is not the model's",
        REFUSED,
        BASE,
        config={"target_modules": ["lm_head"]},
        onto=retrained,
        said="brings its own base weight, .*lm_head.base_layer.*load the base",
        models=("llama",),
    ),
    Situation(
        "likewise, of a vocabulary that was resized",
        REFUSED,
        "give the base resized as there",
        config={"target_modules": ["lm_head"]},
        base=resized(1),
        said=r"with 132 rows, and this model has 128: .* resize_token_embeddings\(132\)",
        models=("llama",),
    ),
    Situation(
        "`ensure_weight_tying` on GPT-2's `wte`, which HF PEFT does not tie",
        SAID,
        "one side alone is trained, as the file has it",
        config=WTE,
        said=ALONE,
        models=("gpt2",),
    ),
    Situation(
        "likewise with `modules_to_save`",
        SAID,
        "one side alone is trained, as the file has it",
        config=SAVED_WTE,
        said=ALONE,
        models=("gpt2",),
    ),
    *(
        Situation(
            f"likewise with `{what}`, and both embeddings saved",
            SAID,
            "one side alone is trained, as the file has it",
            config={**fields, **SAVED},
            base=base,
            said=ALONE,
            models=("gpt2",),
        )
        for what, fields, base in (
            ("target_modules", WTE, None),
            ("modules_to_save", SAVED_WTE, None),
            ("modules_to_save` of a resized vocabulary, `wte", SAVED_WTE, resized(1)),
        )
    ),
    Situation(
        "`target_parameters`",
        REFUSED,
        f"parameters that are no linear layer's, such as stacked experts: {MERGE}",
        edit(target_parameters=["mlp.experts.gate_up_proj"]),
        f"'mlp.experts.gate_up_proj'. are parameters of no linear layer.*{MERGES}",
    ),
    Situation(
        "`peft_type` of another method of HF PEFT",
        REFUSED,
        f"not implemented: {MERGE}",
        edit(peft_type="VERA"),
        f"peft_type 'VERA' is not known here; there are FULL, .*{MERGES}",
    ),
    not_done("alora_invocation_tokens", [1, 2]),
    not_done("arrow_config", {"top_k": 3}),
    not_done("kasa_config", {}),
    not_done("layer_replication", [[0, 2], [1, 2]]),
    not_done("monteclora_config", {"num_samples": 8}),
    not_done("use_bdlora", {"a": 1}),
    not_done("use_qalora", True),
    not_done("a_key_of_tomorrow", 7),
]
