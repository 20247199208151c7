"""Batched generation with and without adapters, and the command over it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, FalconH1Config, RwkvConfig

from peft_lightning.adapters import Full, LoRA, PromptTuning, save_adapter
from peft_lightning.base_model import base_fingerprint, load_base_model
from peft_lightning.commands.generate import generate
from peft_lightning.inference.generate import generate_tokens
from peft_lightning.inference.load import named_folders
from peft_lightning.inference.padding import ALONE, PADDED, batches_of
from peft_lightning.inference.partial_file import PartialAnswers
from tiny import ARCHITECTURES, tiny_model
from tiny_run import byte_tokenizer

ROWS = [[5, 9, 30], [7], [40, 41, 42, 43, 44, 45, 46], [8, 3], [90, 17, 60, 61, 11]]
ADAPTERS = [None, LoRA(r=2, lora_dropout=0.5), PromptTuning(num_virtual_tokens=3)]


class Ends:
    """Stands for a tokenizer whose answers end at ``eos_token_id``."""

    chat_template = None
    pad_token_id = 0

    def __init__(self, eos_token_id: int | None = None) -> None:
        self.eos_token_id = eos_token_id


def adapted(architecture, adapter):
    """Return a float64 model, in which rounding decides nothing, with a random adapter."""
    model = tiny_model(architecture, torch.float64)
    if adapter is not None:
        torch.manual_seed(1)
        adapter.attach(model)
        for tensor in adapter.state_dict(model).values():
            tensor.normal_(std=0.5)
    return model


def by_hand(model, adapter, row, count):
    """Return ``count`` most probable tokens, from the whole sequence anew each time."""
    ids = list(row)
    model.eval()
    for _ in range(count):
        batch = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids)).long()}
        inputs = batch if adapter is None else adapter.prepare_inputs(model, batch)
        with torch.no_grad():
            ids.append(int(model(**inputs, use_cache=False).logits[0, -1].argmax()))
    return ids[len(row) :]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("adapter", ADAPTERS, ids=["base", "lora", "prompt"])
def test_greedy_answers_are_those_of_the_row_alone_without_cache_and_padding(architecture, adapter):
    model = adapted(architecture, adapter)
    want = [by_hand(model, adapter, row, 6) for row in ROWS]
    assert generate_tokens(model, adapter, Ends(), ROWS, 6, batch_size=5) == want
    assert generate_tokens(model, adapter, Ends(), ROWS, 6, batch_size=2) == want
    assert len({tuple(answer) for answer in want}) > 1


RECURRENT = {
    "rwkv": lambda: RwkvConfig(
        hidden_size=32, attention_hidden_size=32, num_hidden_layers=2, vocab_size=128
    ),
    "falcon_h1": lambda: FalconH1Config(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=128,
        mamba_d_ssm=32,
        mamba_n_heads=4,
        mamba_d_head=8,
        mamba_d_state=8,
        mamba_chunk_size=16,
    ),
}


def recurrent(kind, adapter=None):
    """Return a float64 model with a state, whose tokens depend on the text before them."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(RECURRENT[kind]()).double().eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    if adapter is not None:
        adapter.attach(model)
    return model


def alone(model, adapter, rows=ROWS):
    return [generate_tokens(model, adapter, Ends(), [row], 6)[0] for row in rows]


def test_a_model_that_ignores_the_mask_answers_in_batches_of_equal_length_and_says_so(capsys):
    model = adapted("llama", None)
    forward = model.forward
    model.forward = lambda attention_mask=None, position_ids=None, **given: forward(**given)
    rows = [*ROWS, [9, 9, 31]]  # two of one length
    want = alone(model, None, rows)
    assert not capsys.readouterr().err
    batches = []
    options = {"on_answers": lambda picked, _: batches.append(picked)}
    assert generate_tokens(model, None, Ends(), rows, 6, **options) == want
    assert sorted(map(len, batches)) == [1, 1, 1, 1, 2]
    said = "LlamaForCausalLM: prompts are answered in batches of equal length, as beside a longer"
    assert said in capsys.readouterr().err
    assert generate_tokens(model, None, Ends(), rows, 6) == want
    assert not capsys.readouterr().err  # once


@pytest.mark.parametrize("rows", [ROWS, [[7, 3], [7, 3, 5]], [[7], [5]]])
def test_a_state_that_takes_in_other_rows_is_found_and_each_prompt_answered_alone(rows, capsys):
    model = recurrent("rwkv")  # one token of several rows: each is mixed with the others' states
    want = alone(model, None, rows)
    assert generate_tokens(model, None, Ends(), rows, 6) == want
    assert "RwkvForCausalLM: prompts are answered one by one" in capsys.readouterr().err


def test_no_attention_is_moved_by_padding(capsys):
    for architecture in ARCHITECTURES:
        generate_tokens(adapted(architecture, None), None, Ends(), ROWS, 2)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("kind", RECURRENT)
def test_virtual_tokens_reach_a_model_whose_generate_takes_token_ids_alone(kind):
    adapter = PromptTuning(num_virtual_tokens=3)
    model = recurrent(kind, adapter)
    want = [by_hand(model, adapter, row, 6) for row in ROWS]
    assert generate_tokens(model, adapter, Ends(), ROWS, 6) == want
    model.prompt_embeddings.data.normal_(std=2)
    assert generate_tokens(model, adapter, Ends(), ROWS, 6) != want


@pytest.mark.parametrize("kind", RECURRENT)
def test_they_reach_it_in_chat_too_which_prints_the_answer_as_it_comes(kind):
    adapter, tokenizer = PromptTuning(num_virtual_tokens=3), byte_tokenizer()
    model, pieces = recurrent(kind, adapter), []
    want = by_hand(model, adapter, ROWS[2], 6)
    found = generate_tokens(
        model, adapter, tokenizer, ROWS[2:3], 6, end_ids=(), stop=["never"], on_text=pieces.append
    )
    assert found == [want]
    expected = tokenizer.decode(want, skip_special_tokens=True)
    assert "".join(pieces).strip() == expected.strip()


def test_an_answer_ends_before_its_end_token():
    model = adapted("llama", None)
    free = generate_tokens(model, None, Ends(), ROWS, 8)
    end = free[0][3]
    ended = generate_tokens(model, None, Ends(end), ROWS, 8)
    for short, long in zip(ended, free, strict=True):
        assert short == (long[: long.index(end)] if end in long else long)


def test_end_ids_that_are_given_replace_the_tokenizers():
    model = adapted("llama", None)
    free = generate_tokens(model, None, Ends(), ROWS, 8)
    end = free[0][3]
    assert generate_tokens(model, None, Ends(end), ROWS, 8, end_ids=()) == free


def test_the_sampling_settings_of_the_model_are_not_used_and_stay():
    model = adapted("llama", None)
    want = generate_tokens(model, None, Ends(), ROWS, 6)
    own = model.generation_config
    own.repetition_penalty, own.do_sample, own.max_length = 9.0, True, 8
    assert generate_tokens(model, None, Ends(), ROWS, 6) == want
    assert model.generation_config is own


def test_dropout_is_off_in_generation_and_as_before_after_it():
    adapter = LoRA(r=2, lora_dropout=0.9)
    model = adapted("llama", adapter)
    dropouts = [m for m in model.modules() if isinstance(m, nn.Dropout)]
    assert dropouts
    assert all(d.training for d in dropouts)
    answers = generate_tokens(model, adapter, Ends(), ROWS, 6)
    assert all(d.training for d in dropouts)
    assert answers == [by_hand(model, adapter, row, 6) for row in ROWS]


def test_a_seed_decides_the_samples_and_the_global_random_state_stays():
    model = adapted("llama", None)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    one, same, other = (
        generate_tokens(model, None, Ends(), ROWS, 8, temperature=1.5, seed=s) for s in (1, 1, 2)
    )
    assert one == same != other
    assert torch.equal(torch.get_rng_state(), state)


def test_a_small_top_p_leaves_only_the_most_probable_token():
    model = adapted("llama", None)
    greedy = generate_tokens(model, None, Ends(), ROWS, 8)
    assert generate_tokens(model, None, Ends(), ROWS, 8, temperature=1.0, top_p=1e-6) == greedy
    assert generate_tokens(model, None, Ends(), ROWS, 8, temperature=1.0) != greedy


def test_what_was_cut_off_goes_on_to_the_same_samples():
    model, seen = adapted("llama", None), {}
    options = {"batch_size": 2, "temperature": 1.5}

    def remember(rows, answers):
        seen.update(zip(rows, answers, strict=True))

    whole = generate_tokens(model, None, Ends(), ROWS, 4, on_answers=remember, **options)
    assert [seen[i] for i in range(5)] == whole
    done = list(seen)[:2]
    seen.clear()
    generate_tokens(model, None, Ends(), ROWS, 4, skip=done, on_answers=remember, **options)
    assert seen == {i: whole[i] for i in range(5) if i not in done}


def test_each_token_is_told_as_the_answers_that_it_amounts_to():
    model, told = adapted("llama", None), []
    answers = generate_tokens(model, None, Ends(), ROWS[:4], 8, batch_size=4, on_token=told.append)
    assert told == [0.5 * (i + 1) for i in range(len(told))]
    assert max(map(len, answers)) <= len(told) <= 8
    assert answers == generate_tokens(model, None, Ends(), ROWS[:4], 8, batch_size=4)


def test_no_rows_have_no_answers():
    assert generate_tokens(adapted("llama", None), None, Ends(), []) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"temperature": -1.0}, "temperature must be 0 or more, got -1.0"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"rows": [[4], []]}, "prompt 2 has no tokens"),
        ({"max_new_tokens": 254}, "prompt 2 has 3 tokens.*254 it exceeds the model's 256 pos"),
    ],
)
def test_an_impossible_request_is_named(options, message):
    options = {"rows": [[4], [4, 5, 6]], **options}
    with pytest.raises(ValueError, match=message):
        generate_tokens(adapted("gpt2", None), None, Ends(), **options)


def test_virtual_tokens_take_room_too():
    adapter = PromptTuning(num_virtual_tokens=3)
    model = adapted("gpt2", adapter)
    with pytest.raises(ValueError, match=r"prompt 1 has 2 tokens.* 252 and 3 virtual tokens it"):
        generate_tokens(model, adapter, Ends(), [[4, 5]], 252)
    with pytest.raises(ValueError, match="253 leave no room for a prompt in the model's 256"):
        generate_tokens(model, adapter, Ends(), [[4]], 253)
    assert len(generate_tokens(model, adapter, Ends(), [[4]], 252)[0]) == 252


# ---- the command ------------------------------------------------------------------------------


def answers(file):
    return [json.loads(line)["prediction"] for line in file.read_text().splitlines()]


def test_rows_of_a_file_get_their_answers_in_their_order(base, rows, tmp_path):
    out = tmp_path / "new" / "answers.jsonl"
    generate(base_model=str(base), file=str(rows), output=str(out), max_new_tokens=5, batch_size=7)
    given = [json.loads(line) for line in rows.read_text().splitlines()]
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [{**row, "prediction": "x"} for row in given] == [
        {**row, "prediction": "x"} for row in written
    ]
    alone = tmp_path / "alone.jsonl"
    generate(
        base_model=str(base), file=str(rows), output=str(alone), max_new_tokens=5, batch_size=1
    )
    assert answers(alone) == answers(out)


def test_text_rows_and_messages_ask_the_same(base, tmp_path):
    text, chat = tmp_path / "a.txt", tmp_path / "b.jsonl"
    text.write_text("open the door\n\nstop\n")
    chat.write_text(
        "".join(
            json.dumps({"messages": [{"role": "user", "content": p}]}) + "\n"
            for p in ("open the door", "stop")
        )
    )
    for file in (text, chat):
        generate(base_model=str(base), file=str(file), output=f"{file}.out", max_new_tokens=5)
    one, other = (answers(file.with_name(file.name + ".out")) for file in (text, chat))
    assert one == other
    assert len(one) == 2


def test_the_adapters_base_is_found_and_its_answers_are_others(base, rows, lora_folder, tmp_path):
    generate(base_model=str(base), file=str(rows), output=str(tmp_path / "base"), max_new_tokens=5)
    generate(
        ckpt_path=str(lora_folder), file=str(rows), output=str(tmp_path / "lora"), max_new_tokens=5
    )
    assert answers(tmp_path / "base") != answers(tmp_path / "lora")


def test_a_fully_trained_model_is_its_own_base(base, tmp_path, capsys):
    model = load_base_model(str(base))
    adapter = Full()
    adapter.attach(model)
    with torch.no_grad():
        model.lm_head.weight.neg_()
    save_adapter(adapter, model, tmp_path / "full.ckpt", {}, byte_tokenizer())
    generate(base_model=str(base), prompt="a", max_new_tokens=5)
    before = capsys.readouterr().out
    generate(ckpt_path=str(tmp_path / "full.ckpt"), prompt="a", max_new_tokens=5)
    assert capsys.readouterr().out != before
    with pytest.raises(ValueError, match="is a whole model: give it without --base_model"):
        generate(base_model=str(base), ckpt_path=str(tmp_path / "full.ckpt"), prompt="a")


def test_several_prompts_are_answered_one_below_the_other(base, capsys):
    generate(base_model=str(base), prompt=["a", "b"], max_new_tokens=3)
    both = capsys.readouterr().out
    single = []
    for prompt in ("a", "b"):
        generate(base_model=str(base), prompt=prompt, max_new_tokens=3)
        single.append(capsys.readouterr().out.rstrip("\n"))
    assert both.rstrip("\n") == "\n\n".join(single)


def test_a_system_message_changes_the_prompt_of_those_that_have_none(base, tmp_path):
    def ask(name, messages, **options):
        file = tmp_path / f"{name}.jsonl"
        file.write_text(json.dumps({"messages": messages}) + "\n")
        out = tmp_path / f"{name}.out"
        places = {"file": str(file), "output": str(out), "overwrite": True}
        generate(base_model=str(base), max_new_tokens=12, **places, **options)
        return answers(out)

    user = {"role": "user", "content": "hello"}
    own = {"role": "system", "content": "be brief"}
    assert ask("given", [user], system="be brief") == ask("own", [own, user])
    assert ask("kept", [own, user], system="be long") == ask("own", [own, user])
    assert ask("none", [user]) != ask("own", [own, user])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_model": "BASE"}, "give either --prompt, a text, or --file"),
        (
            {"base_model": "BASE", "prompt": "a", "file": "x"},
            "give either --prompt, a text, or --file",
        ),
        ({"prompt": "a"}, "give --ckpt_path, an adapter's folder, or --base_model"),
        ({"base_model": "BASE", "file": "x.txt"}, "there is no file x.txt"),
        ({"base_model": "BASE", "file": "x.jsonl"}, "x.jsonl: no such file"),
        ({"base_model": "BASE", "prompt": []}, "there is no prompt in --prompt"),
        ({"base_model": "BASE", "prompt": "a", "output": "."}, r"output \. is a folder"),
        ({"ckpt_path": "no/best.ckpt", "prompt": "a"}, "there is no folder no/best.ckpt"),
    ],
)
def test_a_wrong_command_line_is_explained(base, options, message):
    options = {k: str(base) if v == "BASE" else v for k, v in options.items()}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        generate(**options)


def test_a_malformed_row_is_named_with_its_line(base, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a"}\n{"prompt": null}\n')
    with pytest.raises(ValueError, match=r"rows.jsonl:2: .*prompt"):
        generate(base_model=str(base), file=str(file))


def test_an_adapter_of_another_base_is_refused_unless_it_is_allowed(lora_folder, tmp_path, capsys):
    other = tmp_path / "other"
    tokenizer = byte_tokenizer()
    tiny_model("llama", vocab_size=len(tokenizer), seed=7).save_pretrained(other)
    tokenizer.save_pretrained(other)
    with pytest.raises(ValueError, match="was trained on another base model"):
        generate(ckpt_path=str(lora_folder), base_model=str(other), prompt="a")
    generate(
        ckpt_path=str(lora_folder),
        base_model=str(other),
        prompt="a",
        allow_base_mismatch=True,
        max_new_tokens=2,
    )
    assert capsys.readouterr().out


def test_naming_the_command_does_not_import_torch():
    code = "import sys, peft_lightning.commands.generate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture(scope="module")
def prompt_folder(base, tmp_path_factory):
    """A soft prompt over ``base`` that changes its answers much."""
    folder = tmp_path_factory.mktemp("prompt") / "soft"
    model, adapter = load_base_model(str(base)), PromptTuning(num_virtual_tokens=3)
    facts = {"base_fingerprint": base_fingerprint(model)}
    adapter.attach(model)
    torch.manual_seed(5)
    adapter.state_dict(model)["prompt_embeddings"].normal_(std=0.5)
    save_adapter(adapter, model, folder, facts)
    return folder


def test_each_row_is_answered_by_the_adapter_it_names(
    base, rows, lora_folder, prompt_folder, tmp_path
):
    adapters = [f"a={lora_folder}", f"soft={prompt_folder}"]
    given = [json.loads(line) for line in rows.read_text().splitlines()][:7]
    names = ["soft", "a", "base", "a", "soft", "base", "a"]
    file = tmp_path / "rows.jsonl"
    file.write_text(
        "".join(json.dumps({**r, "adapter": n}) + "\n" for r, n in zip(given, names, strict=True))
    )
    generate(file=str(file), output=str(tmp_path / "o"), adapter=adapters, max_new_tokens=5)
    plain = tmp_path / "plain.jsonl"
    plain.write_text("".join(json.dumps(r) + "\n" for r in given))
    options = {"file": str(plain), "max_new_tokens": 5}
    alone = {"a": {"ckpt_path": str(lora_folder)}, "soft": {"ckpt_path": str(prompt_folder)}}
    alone["base"] = {"base_model": str(base)}
    for name, source in alone.items():
        generate(**source, output=str(tmp_path / name), **options)
    expected = {name: answers(tmp_path / name) for name in alone}
    assert answers(tmp_path / "o") == [expected[n][i] for i, n in enumerate(names)]
    generate(adapter=adapters, output=str(tmp_path / "each"), **options)
    each = [json.loads(line) for line in (tmp_path / "each").read_text().splitlines()]
    assert [(r["adapter"], r["prediction"]) for r in each] == [
        (name, expected[name][i]) for i in range(7) for name in ("a", "soft")
    ]
    file.write_text(json.dumps({**given[0], "adapter": "b"}) + "\n")
    with pytest.raises(ValueError, match=r"row 1 has adapter 'b'; .* given: base, a, soft"):
        generate(file=str(file), adapter=adapters)


def test_a_killed_run_goes_on_where_it_stopped(base, rows, tmp_path, capsys, monkeypatch):
    options = {"base_model": str(base), "file": str(rows), "max_new_tokens": 5, "batch_size": 4}
    options |= {"temperature": 1.5}
    generate(**options, output=str(tmp_path / "whole"))
    add, calls = PartialAnswers.add, []

    def dies(self, texts, cut):
        calls.append(len(texts))
        add(self, texts, cut)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(PartialAnswers, "add", dies)
    with pytest.raises(KeyboardInterrupt):
        generate(**options, output=str(tmp_path / "cut"))
    assert not (tmp_path / "cut").exists()
    part = tmp_path / "cut.part"
    monkeypatch.setattr(PartialAnswers, "add", add)
    shutil.copy(part, tmp_path / "half.part")
    capsys.readouterr()
    generate(**options, dtype="bfloat16", output=str(tmp_path / "half"))
    assert "already" not in capsys.readouterr().err  # they are answers of other weights
    monkeypatch.setattr(PartialAnswers, "add", dies)
    part.write_text(part.read_text() + '[{"22": "torn')
    capsys.readouterr()
    generate(**options, output=str(tmp_path / "cut"))
    assert "12 answers are there already" in capsys.readouterr().err
    assert sum(calls) == len(answers(tmp_path / "whole"))
    assert (tmp_path / "cut").read_text() == (tmp_path / "whole").read_text()
    assert not part.exists()
    part.write_text("another run\n")
    generate(**options, output=str(tmp_path / "cut"), overwrite=True)
    assert "already" not in capsys.readouterr().err


def test_a_folder_with_an_equals_sign_is_its_own_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("lr=0.1", "x"):
        Path(folder).mkdir()
    assert named_folders(["lr=0.1", "mine=x"]) == {"lr=0.1": "lr=0.1", "mine": "x"}


@pytest.mark.parametrize("how", ["weights", "autocast", "float32"])
def test_rounding_in_two_bytes_is_not_taken_for_an_influence_of_the_batch(how):
    def first_logits(rows):  # float32, as generate returns them, off by 1 % in a batch
        return (torch.arange(8.0).expand(len(rows), 8) * (1 + 0.01 * (len(rows) > 1)),)

    model = tiny_model("llama").to(torch.bfloat16 if how == "weights" else torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        found = batches_of(model, None, [[5, 6], [7, 8, 9]], first_logits)
    assert found == (ALONE if how == "float32" else PADDED)
