"""Adapters' folders of other programs are read as HF PEFT reads them, or refused with a remedy."""

import json
import re
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from foreign_situations import REFUSED, SAID, SITUATIONS
from hf_situations import HF_SITUATIONS
from parity import IDS, hf_folder, randomise
from peft_lightning.adapters import attached_adapter, load_adapter
from peft_lightning.base_model import resolve
from peft_lightning.commands.check_serving import check_serving
from peft_lightning.export import llama_cpp
from peft_lightning.messages import UserError
from rounding import assert_near
from tiny import tiny_model

LINEAR = {"gpt2": ["c_attn", "c_fc"], "phi3": ["qkv_proj", "down_proj"]}
PAGE = Path(__file__).parents[2] / "docs" / "adapters.md"
# what HF PEFT stumbles over or misses, and vLLM has no use for
NOT_LOOKED_AT = ("`rank_pattern: null`", '`velora_config: {"num_groups": 4}`')
CASES = [(s, a) for s in (*HF_SITUATIONS, *SITUATIONS) for a in s.models]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return HF PEFT's folder of a situation and its logits; each made once."""
    made = {}

    def write(situation, architecture):
        key = architecture, str(situation.config), situation.base
        if key not in made:
            folder = tmp_path_factory.mktemp("hf")
            model = tiny_model(architecture)
            targets = LINEAR.get(architecture, ["q_proj", "up_proj"])
            fields = {"target_modules": targets, "r": 4, "lora_alpha": 6, **situation.config}
            save = {"save_embedding_layers": fields.pop("save_embedding_layers", "auto")}
            kind = LoraConfig
            if "method" in situation.config:
                fields = dict(situation.config)
                kind = fields.pop("method")
            if situation.base is not None:
                situation.base(model)
            peft = hf_folder(kind(task_type="CAUSAL_LM", **fields), model, folder, **save)
            made[key] = folder, peft(IDS).logits[:, -IDS.shape[1] :]
        return made[key]

    return write


@pytest.mark.parametrize(("situation", "architecture"), CASES, ids=lambda x: getattr(x, "what", x))
def test_a_folder_is_read_as_by_hf_peft_or_refused_with_the_remedy(
    situation, architecture, written, tmp_path
):
    source, truth = written(situation, architecture)
    folder = shutil.copytree(source, tmp_path / "adapter")
    situation.change(folder)
    model = tiny_model(architecture)
    if situation.onto is not None:
        situation.onto(model)
    before = model(IDS).logits
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if situation.answer == REFUSED:
            with pytest.raises((ValueError, FileNotFoundError)) as error:
                load_adapter(model, folder)
            assert re.search(situation.said, str(error.value))
            assert "\n" not in str(error.value)
            assert attached_adapter(model) is None
            assert torch.equal(model(IDS).logits, before)
            return
        adapter = load_adapter(model, folder)
    lines = [str(w.message) for w in caught]
    assert any(re.search(situation.said, line) for line in lines) == (situation.answer == SAID)
    assert bool(lines) == (situation.answer == SAID)
    assert (truth[..., :128] - before[..., :128]).abs().max() > 0.1
    inputs = adapter.prepare_inputs(
        model, {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    )
    assert_near(model(**inputs).logits[:, -IDS.shape[1] :], truth)
    adapter.detach(model)
    assert torch.equal(model(IDS).logits, before)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("situation", "architecture"), CASES, ids=lambda x: getattr(x, "what", x))
def test_no_program_is_said_to_serve_a_folder_that_hf_peft_reads_otherwise_or_nobody_reads_here(
    situation, architecture, written, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(resolve, "hub_answers", lambda: False)
    monkeypatch.setattr(llama_cpp, "is_installed", lambda: False)
    folder = shutil.copytree(written(situation, architecture)[0], tmp_path / "adapter")
    situation.change(folder)
    model = tiny_model(architecture)
    if situation.onto is not None:
        situation.onto(model)
    model.save_pretrained(tmp_path / "base")
    said = ""
    try:
        check_serving(str(folder), base_model=str(tmp_path / "base"), json=True)
    except (UserError, FileNotFoundError) as error:  # such as MLX's, which is said in a line
        said = str(error)
    if said:
        assert "\n" not in said
        assert situation.answer == REFUSED or "write it as HF PEFT does" in said
        return
    found = json.loads(capsys.readouterr().out)
    takes = {name: verdict["accepted"] for name, verdict in found.items()}
    if situation.answer == REFUSED:
        assert True not in takes.values()
        return
    assert takes["transformers"] is not None
    assert not takes["transformers"] or found["transformers"]["by"] == "loaded"
    assert takes["transformers"] or not takes["vllm"] or situation.what in NOT_LOOKED_AT
    if situation.what.endswith("resized, onto the plain base"):
        assert "before it, base.resize_token_embeddings(132)" in found["transformers"]["notes"]
    if not takes["transformers"]:
        assert "write it as HF PEFT does" in found["transformers"]["problems"][-1]


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_what_was_trained_whole_and_has_not_moved_is_read(architecture, tmp_path):
    whole = ["norm", "mlp", "embed_tokens", "lm_head"]  # HF PEFT takes input_layernorm for a norm
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=whole)
    get_peft_model(tiny_model(architecture), config).save_pretrained(tmp_path)
    model = tiny_model(architecture)
    before = model(IDS).logits
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        load_adapter(model, tmp_path)
    assert torch.equal(model(IDS).logits, before)


@pytest.mark.parametrize("targets", ["all-linear", r".*language_model.*(q_proj|up_proj)"])
def test_an_adapter_of_a_model_of_text_and_images_is_read_onto_its_language_model(
    targets, tmp_path
):
    text = tiny_model("gemma3")
    images = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = Gemma3Config(
        text_config=text.config.to_dict(),
        vision_config={**images, "num_attention_heads": 2, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
    )
    whole = Gemma3ForConditionalGeneration(config).eval()
    whole.model.language_model.load_state_dict(text.model.state_dict())
    peft = get_peft_model(whole, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=targets))
    with torch.no_grad():  # trained on text: what sees images keeps a B of zero
        randomise(
            {n: p for n, p in peft.named_parameters() if "language_model" in n and "lora" in n}
        )
    peft.eval().save_pretrained(tmp_path)
    before = text(IDS).logits
    with pytest.warns(match=r"model\.language_model\.layers\S+ is model\.layers"):
        load_adapter(text, tmp_path)
    assert_near(text(IDS).logits, peft(input_ids=IDS).logits)
    assert (text(IDS).logits - before).abs().max() > 0.1


@pytest.mark.parametrize(
    ("head", "situations"),
    [
        ("| option | in the file |", [f"| {s.what} | {s.why} |" for s in HF_SITUATIONS]),
        (
            "| in the folder | here |",
            [f"| {s.what} | {s.answer} | {s.why} |" for s in SITUATIONS],
        ),
    ],
)
def test_the_page_has_each_situation_and_its_answer(head, situations):
    text = PAGE.read_text()
    assert text[text.index(head) :].split("\n\n")[0].splitlines()[2:] == situations
