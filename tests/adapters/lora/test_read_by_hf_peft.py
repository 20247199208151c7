"""What a folder of ours computes in HF PEFT, over models where it reads names in its own way."""

import copy
import inspect
import json
import warnings

import pytest
import torch
from peft import PeftModel
from peft.utils import transformers_weight_conversion as conversion
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from parity import IDS, our_folder, randomise
from peft_lightning.adapters import LoRA, load_adapter, save_adapter
from peft_lightning.adapters.lora import hf_parameters
from rounding import assert_near

SIZES = {
    **{"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8},
    **{"max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    # a mixture of experts whose first layer is dense
    **{"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4},
    **{"num_experts_per_tok": 2, "moe_topk": 2, "moe_k": 2, "moe_intermediate_size": 16},
    **{"n_shared_experts": 1, "shared_expert_intermediate_size": 16, "mlp_only_layers": [0]},
    **{"first_k_dense_replace": 1, "moe_layer_start_index": 1, "n_group": 1, "topk_group": 1},
    **{"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8},
    **{"v_head_dim": 8, "ffn_hidden_size": 48, "expert_ffn_hidden_size": 16, "num_layers": 2},
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 2, "zero_expert_num": 1},
    **{"linear_key_head_dim": 8, "linear_value_head_dim": 8},
    # other names of the same
    **{"n_embd": 32, "n_layer": 2, "n_head": 4, "d_model": 32, "n_layers": 2, "n_heads": 4},
    **{"num_heads": 4, "attention_types": [[["global", "local"], 1]], "ffn_dim": 48, "dff": 48},
    **{"rotary_dim": 4},
}
MIXTURES = [
    name
    for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if conversion._MOE_TARGET_MODULE_MAPPING.get(conversion._MODEL_TO_CONVERSION_PATTERN.get(name))
]
TIED = ["gpt2", "bloom", "falcon", "mpt", "gpt_bigcode", "gpt_neo", "biogpt", "bert", "codegen"]


def tiny(model_type, **options):
    kind = CONFIG_MAPPING[model_type]
    known = {*inspect.signature(kind).parameters, *kind.attribute_map}
    config = kind(**{k: v for k, v in SIZES.items() if k in known}, **options)
    config.is_decoder = True
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        for parameter in model.parameters():
            parameter.data.normal_(std=0.2)
    return model


def logits(model):
    return model(input_ids=IDS, use_cache=False).logits


def assert_hf_peft_computes_it(adapter, model, folder):
    """Save ``adapter`` with random values, and compare HF PEFT's and our own reading of it."""
    bases = [copy.deepcopy(model) for _ in range(2)]
    before = logits(model)
    adapter.attach(model)
    with torch.no_grad():
        randomise({n: p for n, p in model.named_parameters() if p.requires_grad})
    save_adapter(adapter, model, folder)
    want = logits(model)
    assert (want - before).abs().max() > 0.05
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        peft = PeftModel.from_pretrained(bases[0], folder)
    messages = [str(w.message) for w in caught]
    words = ("missing", "unexpected", "ignored", "no tied modules")
    assert not [m for m in messages if any(word in m.lower() for word in words)]
    assert_near(logits(peft), want)
    load_adapter(bases[1], folder)
    assert_near(logits(bases[1]), want)
    return json.loads((folder / "adapter_config.json").read_text())


@pytest.mark.parametrize("model_type", MIXTURES)
def test_dense_and_shared_layers_of_a_mixture_of_experts_are_adapted(model_type, tmp_path):
    model = tiny(model_type)
    assert_hf_peft_computes_it(LoRA(r=2, target_modules="all-linear"), model, tmp_path)


def test_the_names_that_hf_peft_takes_for_experts_are_its_own():
    own = {kind: set(names) for kind, names in conversion._MOE_TARGET_MODULE_MAPPING.items()}
    assert own == hf_parameters.EXPERTS
    for model_type, kind in conversion._MODEL_TO_CONVERSION_PATTERN.items():
        if kind in own and model_type in CONFIG_MAPPING:
            model = torch.nn.Module()
            model.config = CONFIG_MAPPING[model_type]()
            assert hf_parameters.taken_for_experts(model, ["a.gate"]) == ["a.gate"]


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": "mlp"},
        {"target_modules": ["down_proj"], "layers_to_transform": 0},
        {"target_modules": r".*layers\.0\..*(o_proj|up_proj)"},
        {"target_modules": r".*layers\.0\..*o_proj"},  # HF PEFT takes the leaf of all layers
        {"target_modules": "all-linear", "exclude_modules": ["up_proj"], "use_rslora": True},
        {"target_modules": "all-linear", "init_lora_weights": "olora"},
    ],
    ids=str,
)
def test_every_choice_of_layers_of_a_mixture_is_read(fields, tmp_path):
    assert_hf_peft_computes_it(LoRA(r=2, **fields), tiny("qwen3_moe"), tmp_path)


def test_ranks_and_scales_of_layers_that_are_written_as_parameters_are_read(tmp_path):
    model = tiny("deepseek_v3")
    base = copy.deepcopy(model)
    patterns = {"rank_pattern": {"down_proj": 3}, "alpha_pattern": {"layers.0.mlp.*": 5}}
    our_folder(LoRA(r=2, target_modules="all-linear", **patterns), model, tmp_path)
    assert_near(logits(PeftModel.from_pretrained(base, tmp_path)), logits(model))


@pytest.mark.parametrize("option", [{"use_dora": True}, {"lora_dropout": 0.1}, {"lora_bias": True}])
def test_what_hf_peft_cannot_do_to_a_parameter_is_refused_before_training(option):
    model = tiny("qwen3_moe")
    lora = LoRA(r=2, **option)
    with pytest.raises(
        ValueError, match=r"exclude_modules \['down_proj', 'gate_proj', 'up_proj'\]"
    ):
        lora.attach(model)
    LoRA(r=2, exclude_modules=["down_proj", "gate_proj", "up_proj"], **option).attach(model)


@pytest.mark.parametrize("model_type", TIED)
@pytest.mark.parametrize("option", ["target_modules", "modules_to_save"])
@pytest.mark.parametrize("side", [0, 1])
def test_tied_embeddings_stay_tied_whatever_their_names(model_type, option, side, tmp_path):
    model = tiny(model_type, tie_word_embeddings=True)
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    name = next(name for name, module in model.named_modules() if module is ends[side])
    linear = [n for n, m in model.named_modules() if "Linear" in type(m).__name__ and m != ends[1]]
    fields = {"target_modules": linear[:1] or ["c_attn"], "ensure_weight_tying": True}
    fields[option] = [name.rpartition(".")[2], *fields.get(option, [])]
    assert_hf_peft_computes_it(LoRA(r=2, **fields), model, tmp_path)


def test_an_expression_that_names_a_tied_embedding_in_full_keeps_it_tied(tmp_path):
    model = tiny("gpt2")
    lora = LoRA(r=2, target_modules=r".*\.(wte|c_attn)", ensure_weight_tying=True)
    config = assert_hf_peft_computes_it(lora, model, tmp_path)
    assert config["ensure_weight_tying"] is True
    assert "lm_head" in config["target_modules"]


def test_rows_of_a_tied_embedding_beside_a_whole_head_are_refused_before_training():
    lora = LoRA(r=2, trainable_token_indices=[3], modules_to_save=["lm_head"])
    with pytest.raises(ValueError, match=r"lm_head.*tied.*train both whole: \[wte, lm_head\]"):
        lora.attach(tiny("gpt2"))
    lora.attach(tiny("gpt2", tie_word_embeddings=False))


def test_rows_of_a_head_with_a_bias_are_refused_before_training():
    lora = LoRA(r=2, target_modules=["qkv_proj"], trainable_token_indices=[3])
    with pytest.raises(
        ValueError, match=r"rows of lm_head .* has a bias, which HF PEFT leaves out"
    ):
        lora.attach(tiny("codegen", tie_word_embeddings=True))
    lora.attach(tiny("codegen", tie_word_embeddings=False))
