"""Options of other tools: an error names ours, on the command line and in YAML."""

import re

import pytest

from cli_driver import drive
from peft_lightning.adapters import LoRA
from peft_lightning.cli.class_lookup import options_of
from peft_lightning.cli.foreign_names import FOREIGN_NAMES, foreign_name
from peft_lightning.cli.trainer import Trainer
from peft_lightning.data.datamodule import SFTDataModule
from peft_lightning.module import CausalLMModule
from peft_lightning.training.schedules import Cosine

# a command line or a YAML file, and the error
COMMANDS = {
    "--data.sample_packing true": r"--data\.sample_packing: data has no option 'sample_packing', "
    r"which is of axolotl; here data\.tokens_per_batch: rows are always packed, without padding; "
    r"8192 fills",
    "--data.packing true": r"of TRL, LLaMA-Factory and ms-swift; here data\.tokens_per_batch",
    "--data.max_seq_length 2048": r"of TRL and unsloth; here data\.max_length$",
    "--data.cutoff_len 2048": r"of LLaMA-Factory; here data\.max_length$",
    "--data.micro_batch_size 2": r"of axolotl; here data\.batch_size: rows per batch and device",
    "--data.per_device_train_batch_size 2": r"of transformers and TRL; here data\.batch_size",
    "--model.lora_r 8": r"model has no option 'lora_r', .*; here model\.adapter\.r$",
    "--model.lora_alpha 8": r"here model\.adapter\.lora_alpha$",
    "--model.lr 1e-4": r"model has no option 'lr', which is of torchtune; here model\.learning_ra",
    "--trainer.num_train_epochs 3": r"trainer has no option .*; here trainer\.max_epochs$",
    "--trainer.gradient_accumulation_steps 4": r"here trainer\.accumulate_grad_batches$",
    "--gradient-accumulation-steps 4": r"no option '--gradient-accumulation-steps', which is of",
    "--num_epochs 3": r"there is no option '--num_epochs', which is of axolotl; here trainer\.max",
    "--data.group_by_length true": r"of transformers and TRL; batches have no padding",
    "--data.interleave_probs 0.7": r"here data\.train: \{a\.jsonl: 0\.7, b\.jsonl: 0\.3\} are sh",
    "--model.adapter LoRA --model.adapter.lora_rank 4": r"LoRA has no option 'lora_rank'.*r\.r$",
    # an option of another section of ours
    "--model.max_length 8": r"model has no option 'max_length'; did you mean 'data\.max_length'\?",
    # a class's own options are listed where the other tool's does not fit
    "--model.adapter PromptTuning --model.adapter.lora_rank 4": r"PromptTuning .*num_virtual_tok",
    "data:\n  micro_batch_size: 2\n": r"^error: own\.yaml, line 2: data has no option 'micro_batch",
    "model:\n  base_model: x\ndatasets:\n- path: a.jsonl\n": r"^error: own\.yaml, line 3: there is"
    r" no option 'datasets', which is of axolotl; here data\.train",
    "trainer:\n  num_train_epochs: 3\n": r"own\.yaml, line 2: trainer has no option 'num_train_ep",
    "model:\n  adapter:\n    class_path: LoRA\n    init_args: {lora_r: 4}\n": r"line 4: LoRA has "
    r"no option 'lora_r', .*; here model\.adapter\.r$",
}


@pytest.fixture(scope="module")
def errors(tmp_path_factory):
    """The (status, output, errors) of each of COMMANDS."""
    user = tmp_path_factory.mktemp("user")
    lines = []
    for i, command in enumerate(COMMANDS):
        if "\n" in command:
            (user / f"case{i}").mkdir()
            (user / f"case{i}/own.yaml").write_text(command)
            lines.append(["fit", "--config", f"case{i}/own.yaml"])
        else:
            lines.append(["fit", *command.split()])
    lines.append(["generate", "--packing", "true", "--prompt", "a"])
    return dict(zip([*COMMANDS, "generate"], drive(user, lines), strict=True))


@pytest.mark.parametrize("command", COMMANDS)
def test_an_option_of_another_tool_is_an_error_that_names_ours(errors, command):
    status, _, text = errors[command]
    assert status == 2, text
    (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
    assert re.search(COMMANDS[command], re.sub(r"case\d+/", "", line)), line


def test_a_command_without_a_run_does_not_name_options_of_one(errors):
    status, _, text = errors["generate"]
    assert status == 2
    assert "tokens_per_batch" not in text


@pytest.fixture(scope="module")
def options():
    """The options of each section of a run."""
    sections = {"model": CausalLMModule, "data": SFTDataModule, "trainer": Trainer}
    return {name: options_of(cls).keys() for name, cls in sections.items()}


def test_every_option_that_is_named_exists(options):
    known = {f"{section}.{name}" for section, names in options.items() for name in names}
    known |= {f"model.adapter.{option}" for option in options_of(LoRA)}
    known |= {f"model.lr_schedule.{option}" for option in options_of(Cosine)}
    known |= {"ckpt_path", "model.adapter.class_path"}
    assert {f.option for f in FOREIGN_NAMES.values() if f.option} <= known


def test_no_name_of_the_table_is_an_option_of_ours(options):
    for names in options.values():
        assert not FOREIGN_NAMES.keys() & names
    assert all(found.option or found.remark for found in FOREIGN_NAMES.values())


def test_case_and_hyphens_do_not_matter():
    assert foreign_name("Sample-Packing") == FOREIGN_NAMES["sample_packing"]
    assert foreign_name("batch_size") is None
