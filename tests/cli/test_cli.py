"""The command line as a user meets it: help, one line for each mistake, and what a run leaves."""

import gc
import json
import re
import runpy
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml

import warm_python
from cli_driver import ENVIRONMENT, drive, saved_step, wait_for
from peft_lightning.__main__ import no_collecting
from peft_lightning.adapters import LoRA, load_adapter, save_adapter
from peft_lightning.base_model import base_fingerprint, load_base_model, load_tokenizer
from peft_lightning.data import encode_prompt
from peft_lightning.inference.generate import generate_tokens

ROOT = Path(__file__).parents[2]

EXPERIMENT = '''
"""An experiment."""

from peft_lightning import CausalLMModule


class Smoothed(CausalLMModule):
    """Label smoothing.

    Args:
        smoothing: Mass that moves to the other tokens.
    """

    def __init__(self, *args, smoothing: float = 0.1, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.smoothing = smoothing
        print("smoothing is", smoothing)
'''

MODEL = "model: {base_model: BASE"
DATA = "\ndata: {train: rows.jsonl, batch_size: 4, cache_dir: cache}\ntrainer: {TRAINER}\n"
TRAINER = "max_steps: 1, limit_val_batches: 1, accelerator: cpu, enable_progress_bar: false"

# name: (arguments after `fit`, the YAML file good.yaml is replaced by or None, the error line)
ERRORS = {
    # options of the command line
    "unknown_option": (["--max_epochs", "3"], None, r"--max_epochs.*'--trainer\.max_epochs'"),
    "unknown_model_option": (["--model.bas_model", "x"], None, r"model.*'bas_model'.*'base_model'"),
    "unknown_trainer_option": (["--trainer.max_epoch=3"], None, r"'max_epoch'.*'max_epochs'"),
    "unknown_adapter_option": (["--model.adapter.rr", "3"], None, r"LoRA.*'rr'.*'r'\?"),
    "abbreviated_option": (["--model.base_mod", "x"], None, r"'base_mod'.*'base_model'"),
    "wrong_adapter": (["--model.adapter", "Lora"], None, r"Adapter 'Lora'; did you mean 'LoRA'"),
    "wrong_optimizer": (["--model.optimizer", "AdamX"], None, r"Optimizer 'AdamX'; did you mean"),
    "wrong_schedule": (["--model.lr_schedule", "Cosin"], None, r"LRScheduler 'Cosin'.*'Cosine'"),
    "wrong_callback": (
        ["--trainer.callbacks+", "EarlyStoping"],
        None,
        r"Callback 'EarlyStoping'.*'EarlyStopping'",
    ),
    "wrong_callback_in_a_list": (
        ["--trainer.callbacks", "[{class_path: EarlyStoping}]"],
        None,
        r"Callback 'EarlyStoping'.*'EarlyStopping'",
    ),
    "wrong_type": (["--model.adapter.r", "sixteen"], None, r"adapter\.r must be int.*'sixteen'"),
    "no_value": (["--trainer.max_epochs"], None, r"max_epochs must be int.*no value"),
    "wrong_choice": (["--trainer.precision", "bf16-mixd"], None, r"'bf16-mixd'.*'bf16-mixed'"),
    "stray_argument": (["extra"], None, r"unexpected 'extra'"),
    "config_without_option": (["good.yaml"], None, r"'good\.yaml'.*--config good\.yaml"),
    "refused_value": (["--model.adapter.r", "0"], None, r"r must be .*1.* 0"),
    "refused_by_lightning": (["--trainer.num_nodes", "0"], None, r"num_nodes.*0"),
    "two_rates": (
        [
            "--model.learning_rate",
            "1e-4",
            "--model.optimizer",
            "SGD",
            "--model.optimizer.lr",
            "0.1",
        ],
        None,
        r"two learning rates.*0\.0001.*0\.1",
    ),
    # files
    "no_such_config": (["--config", "god.yaml"], None, r"no config file god\.yaml.*good\.yaml"),
    "config_is_a_folder": (["--config", "."], None, r"is a folder.*good\.yaml"),
    "not_yaml": ([], "model:\n  adapter: [}\n", r"^error: bad\.yaml, line 2: .*YAML"),
    "empty": ([], "\n", r"bad\.yaml is empty"),
    "a_list": ([], "- model\n", r"bad\.yaml holds a list"),
    # keys in YAML: the line is named
    "unknown_section": ([], "\nmodell: {}\n", r"^error: bad\.yaml, line 2: .*'modell'.*'model'"),
    "level_fit": ([], "fit:\n  model: {}\n", r"leave out the level 'fit:'"),
    "unknown_data_key": ([], "data:\n  trian: x\n", r"line 2: data .*'trian'.*'train'"),
    "unknown_trainer_key": ([], "trainer:\n  max_epoch: 1\n", r"line 2: .*'max_epochs'"),
    "unknown_adapter_key": (
        [],
        "model:\n  adapter:\n    class_path: LoRA\n    init_args:\n      lora_alfa: 4\n",
        r"line 5: LoRA .*'lora_alfa'.*'lora_alpha'",
    ),
    "key_of_another_adapter": (
        [],
        "model: {adapter: {class_path: PromptTuning, init_args: {r: 4}}}\n",
        r"PromptTuning has no option 'r'.*num_virtual_tokens",
    ),
    "forgotten_init_args": (
        [],
        "model:\n  adapter: {class_path: LoRA, r: 4}\n",
        r"line 2: 'r' .*init_args: \{class_path: LoRA, init_args: \{r: 4\}\}",
    ),
    "wrong_type_in_yaml": ([], "data: {batch_size: many}\n", r"batch_size must be int.*'many'"),
    "wrong_class_in_yaml": ([], "model:\n  adapter: LoRAA\n", r"line 2: .*'LoRAA'.*'LoRA'"),
    "wrong_class_of_package": (
        [],
        "model: {adapter: {class_path: peft_lightning.LoRAA}}\n",
        r"peft_lightning has no Adapter 'LoRAA'.*'LoRA'",
    ),
    "wrong_module": (
        [],
        "model: {adapter: {class_path: my_ex.LoRA}}\n",
        r"no module 'my_ex'.*did you mean 'LoRA'",
    ),
    "wrong_optimizer_in_yaml": (
        [],
        "model: {optimizer: {class_path: torch.optim.AdmW}}\n",
        r"torch\.optim has no Optimizer 'AdmW'.*'AdamW'",
    ),
    "wrong_optimizer_option": (
        [],
        "model: {optimizer: {class_path: torch.optim.AdamW, init_args: {lrr: 1}}}\n",
        r"AdamW has no option 'lrr'.*'lr'",
    ),
    "another_kind_of_schedule": (
        [],
        "model: {lr_schedule: {class_path: torch.optim.lr_scheduler.StepLR}}\n",
        r"StepLR needs 'step_size'",
    ),
    "wrong_callback_option": (
        [],
        "trainer: {callbacks: [{class_path: EarlyStopping, init_args: {monitr: x}}]}\n",
        r"EarlyStopping has no option 'monitr'.*'monitor'",
    ),
    "missing_callback_option": (
        [],
        f"{MODEL}}}\ntrainer: {{callbacks: [{{class_path: EarlyStopping}}]}}\n",
        r"EarlyStopping needs 'monitor'",
    ),
    "wrong_option_of_the_second_callback": (
        [],
        f"{MODEL}}}\ntrainer:\n  callbacks:\n  - class_path: LearningRateMonitor\n"
        "  - {class_path: EarlyStopping, init_args: {monitor: x, patience: many}}\n",
        r"line 5: trainer\.callbacks\[1\]\.patience must be int, got 'many'",
    ),
    "forgotten_init_args_in_a_list": (
        [],
        "trainer:\n  callbacks:\n  - class_path: EarlyStopping\n    monitor: x\n",
        r"line 4: 'monitor' of trainer\.callbacks\[0\] belongs under init_args",
    ),
    "arguments_without_a_class": (
        [],
        "model: {optimizer: {init_args: {lr: 1}}}\n",
        r"model\.optimizer needs a class_path",
    ),
    "section_without_options": ([], "model: 3\n", r"line 1: model must be options, got 3"),
    "wrong_key_in_the_file_of_an_adapter": (
        ["--model.adapter", "adapter.yaml"],
        None,
        r"adapter\.yaml, line 2: LoRA has no option 'rr'.*'r'",
    ),
    "no_file_of_an_adapter": (
        ["--model.adapter", "adaptr.yaml"],
        None,
        r"adaptr\.yaml.*adapter\.y",
    ),
    "a_secret_in_a_wrong_value": (
        [],
        "model: {adapter: [{api_key: abcdef}]}\n",
        r"model\.adapter must be Adapter, got \[\{\}\]$",
    ),
    "missing_base_model": ([], "seed_everything: 1\n", r"fit needs two options: --model\.base_mo"),
    "missing_data": ([], f"{MODEL}}}\n", r"data\.train is required"),
    # experiments
    "wrong_adapter_of_an_experiment": (
        [],
        "model: {class_path: my_exp.Smoothed, init_args: {base_model: x, adapter: LoRAA}}\n",
        r"line 1: model\.adapter: there is no Adapter 'LoRAA'.*'LoRA'",
    ),
    "wrong_experiment": ([], "model: my_exp.Smothed\n", r"my_exp has no .*'Smothed'.*'Smoothed'"),
    "experiment_is_no_module": ([], "model: {class_path: torch.nn.Linear}\n", r"is no CausalLMM"),
    "unknown_experiment_option": (
        [],
        "model: {class_path: my_exp.Smoothed, init_args: {base_model: x, smothing: 1}}\n",
        r"'smothing'.*'smoothing'",
    ),
    "experiment_without_base": (
        [],
        "model: {class_path: my_exp.Smoothed}\n",
        r"fit needs two options: --model\.base_model",
    ),
    # what only a run finds out
    "no_such_data": (["--data.train", "row.jsonl"], None, r"row\.jsonl.*rows\.jsonl"),
    "unmatched_target": (["--model.adapter.target_modules", "[wq]"], None, r"'wq'.*q_proj"),
    "no_best_checkpoint": (["--ckpt_path", "best"], None, r"no runs/good/checkpoints/best\.ckpt"),
    "no_such_checkpoint": (["--ckpt_path", "x.ckpt"], None, r"there is no x\.ckpt"),
}


def run(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m peft_lightning`` in ``folder``, as a user would."""
    return warm_python.run(["-m", "peft_lightning", *args], cwd=folder, env=ENVIRONMENT)


def run_light(folder: Path, args: list[str], heavy: tuple[str, ...]) -> subprocess.CompletedProcess:
    """Run the program, which must not import ``heavy``."""
    code = (
        "import sys\n"
        "from peft_lightning.__main__ import main\n"
        f"status = main({args!r})\n"
        f"assert not {{*{heavy!r}}} & sys.modules.keys()\n"
        "sys.exit(status)"
    )
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)


def prepare(folder: Path, base: Path, rows: Path) -> Path:
    """Write a good config, an experiment and rows into ``folder``."""
    good = (MODEL + ", adapter: {class_path: LoRA, init_args: {r: 2}}}" + DATA).replace(
        "BASE", str(base)
    )
    (folder / "good.yaml").write_text(good.replace("TRAINER", TRAINER))
    (folder / "my_exp.py").write_text(EXPERIMENT)
    (folder / "adapter.yaml").write_text("class_path: LoRA\ninit_args: {rr: 3}\n")
    (folder / "rows.jsonl").write_text(rows.read_text())
    return folder


@pytest.fixture(scope="module")
def user(tmp_path_factory, base, rows):
    return prepare(tmp_path_factory.mktemp("user"), base, rows)


def write_adapter(folder: Path, base: Path) -> None:
    """Write a random LoRA on ``base``."""
    model, adapter = load_base_model(str(base)), LoRA(r=3)
    adapter.attach(model)
    torch.manual_seed(0)
    for tensor in adapter.state_dict(model).values():
        tensor.normal_(std=0.3)
    save_adapter(adapter, model, folder, {"base_fingerprint": base_fingerprint(model)})


# ---- errors -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mistakes(user, base):
    """(status, output, errors) of each of ERRORS, from one process."""
    lines = []
    for i, (args, content, _) in enumerate(ERRORS.values()):
        config = "good.yaml"
        if content is not None:
            (user / f"case{i}").mkdir()
            config = f"case{i}/bad.yaml"
            (user / config).write_text(content.replace("BASE", str(base)))
        given = args if "--config" in args or "good.yaml" in args else ["--config", config, *args]
        lines.append(["fit", *given])
    return dict(zip(ERRORS, drive(user, lines), strict=True))


@pytest.mark.parametrize("name", ERRORS)
def test_a_mistake_gives_one_line_that_names_the_right_way_and_status_2(mistakes, name):
    status, _, errors = mistakes[name]
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert status == 2, errors
    assert len(lines) == 1, errors
    assert errors.rstrip().endswith(lines[0])  # nothing after it
    assert re.search(ERRORS[name][2], re.sub(r"case\d+/", "", lines[0])), lines[0]
    assert "Traceback" not in errors
    assert "usage:" not in errors


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (
            ["fitt", "--config", "good.yaml"],
            r"no command 'fitt'; there are: .*; did you mean fit\?",
        ),
        (["trian"], r"no command 'trian'.*fit, validate"),
        (["--config", "good.yaml", "fit"], r"--config comes after the command: .* fit --config"),
        (["--config=good.yaml"], r"comes after the command: .* fit --config=good\.yaml"),
        (["fit", "--config", "god.yaml"], r"no config file god\.yaml.*good\.yaml"),
        (
            ["generate", "--base_modl", "x"],
            r"there is no option '--base_modl'; did you mean '--base_model'",
        ),
        (["generate", "--batch_size", "x", "--prompt", "a"], r"--batch_size must be int, got 'x'"),
        (["generate"], r"--prompt"),
    ],
)
def test_a_mistake_is_named_without_the_heavy_imports(user, args, error):
    done = run_light(user, args, ("torch", "lightning", "transformers"))
    assert done.returncode == 2
    assert re.search(error, done.stderr), done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_debug_shows_the_traceback_of_a_users_class_and_of_a_mistake(user):
    (user / "buggy.py").write_text(
        "from peft_lightning import CausalLMModule\n\n\n"
        "class Buggy(CausalLMModule):\n"
        "    def configure_model(self):\n        int('x')\n"
    )
    fit = ["fit", "--config", "good.yaml"]
    bug, mistake = drive(
        user,
        [
            [*fit, "--model", "buggy.Buggy", "--debug"],
            [*fit, "--model.adapter.rr", "1", "--debug"],
        ],
    )
    assert bug[0] == "traceback"
    assert "invalid literal for int" in bug[2]
    assert mistake[0] == "traceback"
    assert "'rr'" in mistake[2]


@pytest.mark.parametrize("collecting", [True, False])
def test_importing_a_command_leaves_the_collection_of_garbage_as_it_was(collecting):
    before = gc.isenabled()
    try:
        (gc.enable if collecting else gc.disable)()
        with suppress(ImportError), no_collecting():
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled() == collecting
    finally:
        (gc.enable if before else gc.disable)()


# ---- help -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["fit", "--help"],
        ["--version"],
        ["-V"],
        ["version"],
        ["help"],
        ["help", "fit"],
        [],
    ],
    ids=str,
)
def test_help_imports_nothing_heavy(tmp_path, args):
    done = run_light(tmp_path, args, ("torch", "lightning", "transformers", "jsonargparse"))
    assert done.returncode == 0, done.stderr


def test_help_names_every_command_with_the_first_line_of_its_function():
    from peft_lightning.__main__ import OWN_COMMANDS, TRAINER_COMMANDS, main_help

    files = {file.stem for file in (ROOT / "peft_lightning" / "commands").glob("[!_]*.py")}
    assert {name.replace("-", "_") for name in OWN_COMMANDS} == files
    for name in (*TRAINER_COMMANDS, *OWN_COMMANDS):
        assert re.search(rf"^  {name} +\w", main_help(), re.MULTILINE)


def test_the_help_of_fit_is_short_and_tells_the_options_of_the_real_parser():
    import lightning as L

    from peft_lightning import CausalLMModule, LoRA, PromptTuning, SFTDataModule
    from peft_lightning.cli.class_lookup import options_of
    from peft_lightning.cli.help import command_help

    text = command_help("fit", "Train.")
    assert len(text.splitlines()) < 175
    shown = set(re.findall(r"^  --(\w+\.\w+)", text, re.MULTILINE))
    for section, cls in (("model", CausalLMModule), ("data", SFTDataModule)):
        assert {o for o in shown if o.startswith(section)} == {
            f"{section}.{o}" for o in options_of(cls)
        }
    assert {o.split(".")[1] for o in shown if o.startswith("trainer")} <= options_of(
        L.Trainer
    ).keys()
    for adapter in (LoRA, PromptTuning):
        listed = re.search(rf"^  {adapter.__name__}: .*\n((?:      .*\n)+)", text, re.MULTILINE)
        assert re.findall(r"\w+", listed[1]) == list(options_of(adapter))
    assert "None" not in text
    assert not re.search(r"^  --\S+ +(\.|\()", text, re.MULTILINE)  # an option without words


def test_the_file_of_the_short_help_is_up_to_date():
    from peft_lightning.cli.help import FILE

    script = runpy.run_path(str(ROOT / "scripts" / "write_help.py"))
    written = FILE.read_text("utf-8")
    assert script["short_help"]() == written, f"{FILE} is old: run python scripts/write_help.py"


def test_the_full_help_and_the_help_of_an_adapter_come_from_the_parser(user):
    full, lora = drive(
        user,
        [
            ["fit", "--help", "all"],
            ["fit", "--config", "good.yaml", "--model.adapter.help", "LoRA"],
        ],
    )
    assert full[0] == 0
    assert "--trainer.reload_dataloaders_every_n_epochs" in full[1]
    assert lora[0] == 0
    assert "Adds a trainable rank-``r`` update" in lora[1]
    assert "Rank of the updates" in lora[1]


def test_generate_shows_its_help(user):
    done = run(user, "generate", "--help")
    assert done.returncode == 0
    assert "--max_new_tokens" in done.stdout


# ---- runs -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory, base, rows):
    """The folder and (status, output, errors) of some runs in one process."""
    user = prepare(tmp_path_factory.mktemp("runs"), base, rows)
    write_adapter(user / "other", base)
    mixed = zip(rows.read_text().splitlines(), ["b", "base", "a", "b", "a"], strict=False)
    lines = [json.dumps({**json.loads(row), "adapter": name}) + "\n" for row, name in mixed]
    (user / "mixed.jsonl").write_text("".join(lines))
    (user / "r3.yaml").write_text("model: {adapter: {init_args: {r: 3}}}\n")
    (user / "exp.yaml").write_text(
        (user / "good.yaml")
        .read_text()
        .replace("model: {", "model: {class_path: my_exp.Smoothed, init_args: {smoothing: 0.3, ")
        .replace("r: 2}}}", "r: 2}}}}")
    )
    fit = ["fit", "--config", "good.yaml"]
    steps = [*fit, "--trainer.default_root_dir"]
    lines = {
        "fit": fit,
        "again": [*fit, "--ckpt_path", "last", "--trainer.max_steps", "2"],
        "failed": [*fit, "--model.adapter.target_modules", "[wq]"],
        "validate": ["validate", "--config", "runs/good/config.yaml", "--ckpt_path", "best"],
        "untrained": ["validate", "--config", "good.yaml"],
        "predict": [
            *["predict", "--config", "good.yaml", "--ckpt_path", "last"],
            *["--data.predict", "rows.jsonl", "--trainer.limit_predict_batches", "1"],
            *["--model.predict_max_new_tokens", "3"],
        ],
        "predict_many": [
            *["predict", "--config", "good.yaml", "--data.predict", "mixed.jsonl"],
            *["--adapter", "a=runs/good/checkpoints/last.ckpt", "--adapter", "b=other"],
            *["--trainer.precision", "32-true"],
            *["--model.predict_max_new_tokens", "9", "--trainer.default_root_dir", "many"],
        ],
        "predict_unnamed": [
            *["predict", "--config", "good.yaml", "--data.predict", "mixed.jsonl"],
            *["--ckpt_path", "last", "--overwrite"],
        ],
        "predict_both": [
            *["predict", "--config", "good.yaml", "--data.predict", "mixed.jsonl"],
            *["--ckpt_path", "last", "--adapter", "other"],
        ],
        "config_last": [
            *["fit", "--trainer.default_root_dir", "late", "--model.adapter.r", "5"],
            *["--config", "good.yaml", "--config=r3.yaml"],
        ],
        "two_configs": [*fit, "--config", "r3.yaml", "--model.adapter.lora_alpha", "5"],
        "last_of_nothing": [*steps, "new", "--ckpt_path", "last"],
        "experiment": ["fit", "--config", "exp.yaml"],
        "plain_experiment": [
            *[*steps, "plain", "--model", "my_exp.Smoothed", "--model.smoothing", "0.4"],
            *["--model.adapter.r", "4"],
        ],
        "own_logger": [
            *[*steps, "own", "--trainer.logger", "lightning.pytorch.loggers.CSVLogger"],
            *["--trainer.logger.save_dir", "elsewhere"],
        ],
        "adapter_rate": [*steps, "rate1", "--model.optimizer", "SGD"],
        "module_rate": [
            *[*steps, "rate2", "--model.optimizer", "torch.optim.SGD"],
            *["--model.learning_rate", "0.5"],
        ],
        "own_rate": [*steps, "rate3", "--model.optimizer", "AdamW", "--model.optimizer.lr", "1e-3"],
        "prompt_rate": [
            *[*steps, "rate4", "--model.optimizer", "SGD", "--model.adapter", "PromptTuning"],
        ],
        "resaved": ["fit", "--config", "rate2/config.yaml", "--trainer.default_root_dir", "rate5"],
        "print_config": [*fit, "--model.optimizer", "SGD", "--print_config"],
        "print_nothing": ["fit", "--print_config"],
    }
    return user, dict(zip(lines, drive(user, list(lines.values())), strict=True))


def config(user: Path, folder: str) -> dict:
    return yaml.safe_load((user / folder / "config.yaml").read_text())


def test_a_run_leaves_config_logs_and_checkpoints_in_the_folder_named_after_its_config(runs):
    user, results = runs
    assert results["fit"][0] == 0, results["fit"][2]
    root = user / "runs" / "good"
    assert (root / "checkpoints" / "last.ckpt" / "adapter_config.json").is_file()
    assert (root / "logs" / "version_0" / "metrics.csv").is_file()
    assert list((root / "logs" / "version_0").glob("events.out.tfevents.*"))
    assert config(user, "runs/good")["trainer"]["default_root_dir"] == "runs/good"


def test_a_run_continues_in_its_folder_and_a_failed_one_leaves_the_config_alone(runs):
    user, results = runs
    assert results["again"][0] == 0, results["again"][2]
    assert results["failed"][0] == 2
    assert config(user, "runs/good")["trainer"]["max_steps"] == 2
    assert (
        config(user, "runs/good")["model"]["adapter"]["init_args"]["target_modules"] == "all-linear"
    )
    summary = json.loads((user / "runs" / "good" / "summary.json").read_text())
    assert summary["steps"] == 2


def test_the_saved_config_validates_the_best_checkpoint(runs):
    _, results = runs
    assert results["validate"][0] == 0, results["validate"][2]
    assert "val/loss" in results["validate"][1]
    assert "untrained" not in results["validate"][2]


def test_a_validation_without_checkpoint_says_that_the_adapter_is_untrained(runs):
    _, results = runs
    assert results["untrained"][0] == 0
    assert "--ckpt_path best is the trained one" in results["untrained"][2]


def test_predict_writes_each_row_with_its_answer(runs):
    user, results = runs
    assert results["predict"][0] == 0, results["predict"][2]
    lines = (user / "runs" / "good" / "predictions.jsonl").read_text().splitlines()
    rows = (user / "rows.jsonl").read_text().splitlines()
    assert len(lines) == 4
    assert all(len(json.loads(line)["prediction"]) <= 3 for line in lines)  # tokens are bytes
    first = json.loads(lines[0])
    added = {name: first[name] for name in ("prediction", "prediction_scores")}
    assert {**json.loads(rows[0]), **added} == first
    assert "compared with the answers that 4 of 4 rows have:" in results["predict"][1]


def test_predict_lets_each_row_be_answered_by_the_adapter_that_it_names(runs, base):
    user, results = runs
    assert results["predict_many"][0] == 0, results["predict_many"][2]
    assert "untrained" not in results["predict_many"][2]
    rows = [json.loads(line) for line in (user / "mixed.jsonl").read_text().splitlines()]
    found = [json.loads(x) for x in (user / "many" / "predictions.jsonl").read_text().splitlines()]
    added = {"prediction", "prediction_scores"}
    assert [{k: v for k, v in row.items() if k not in added} for row in found] == rows
    folders = {"a": user / "runs/good/checkpoints/last.ckpt", "b": user / "other"}
    for row in found:  # each alone, by another way
        folder = folders.get(row["adapter"])
        model, adapter = load_base_model(str(base)), None
        if folder is not None:
            adapter = load_adapter(model, folder)
        tokenizer = load_tokenizer(str(base))
        ids = encode_prompt(tokenizer, row["prompt"])
        [answer] = generate_tokens(model, adapter, tokenizer, [ids], 9)
        text = tokenizer.decode(answer, skip_special_tokens=True)
        assert row["prediction"] == text.strip()


def test_predict_refuses_rows_that_name_an_adapter_and_a_second_way_to_name_it(runs):
    _, results = runs
    status, _, errors = results["predict_unnamed"]
    assert (status, "row 1 has adapter 'b'; with --adapter" in errors) == (2, True), errors
    status, _, errors = results["predict_both"]
    assert (status, "give either --ckpt_path or --adapter" in errors) == (2, True), errors


def test_another_logger_is_taken_by_class_path(runs):
    user, results = runs
    assert results["own_logger"][0] == 0, results["own_logger"][2]
    assert list((user / "elsewhere").rglob("metrics.csv"))
    assert not (user / "own" / "logs").exists()


def test_configs_and_options_are_merged_from_left_to_right(runs):
    user, results = runs
    assert results["two_configs"][0] == 0, results["two_configs"][2]
    adapter = config(user, "runs/good+r3")["model"]["adapter"]["init_args"]
    assert (adapter["r"], adapter["lora_alpha"]) == (3, 5)


def test_options_win_over_config_files_wherever_they_stand(runs):
    user, results = runs
    assert results["config_last"][0] == 0, results["config_last"][2]
    assert config(user, "late")["model"]["adapter"]["init_args"]["r"] == 5


def test_continuing_from_last_where_nothing_is_starts_from_the_beginning_and_says_so(runs):
    _, results = runs
    assert results["last_of_nothing"][0] == 0
    assert "starting from the beginning" in results["last_of_nothing"][2]


@pytest.mark.parametrize(
    ("name", "folder", "smoothing", "r"),
    [("experiment", "runs/exp", 0.3, 2), ("plain_experiment", "plain", 0.4, 4)],
)
def test_an_experiment_is_named_in_yaml_or_on_the_command_line(runs, name, folder, smoothing, r):
    user, results = runs
    assert results[name][0] == 0, results[name][2]
    assert f"smoothing is {smoothing}" in results[name][1]
    model = config(user, folder)["model"]
    assert model["class_path"] == "my_exp.Smoothed"
    assert model["init_args"]["adapter"]["init_args"]["r"] == r


@pytest.mark.parametrize(
    ("name", "folder", "rate"),
    [
        ("adapter_rate", "rate1", 2e-4),
        ("module_rate", "rate2", 0.5),
        ("own_rate", "rate3", 1e-3),  # equal to the class's default, but given
        ("prompt_rate", "rate4", None),
        ("resaved", "rate5", 0.5),
    ],
)
def test_an_optimizer_without_rate_trains_at_the_modules_or_the_adapters(runs, name, folder, rate):
    from peft_lightning import PromptTuning

    user, results = runs
    assert results[name][0] == 0, results[name][2]
    rate = PromptTuning.learning_rate if rate is None else rate
    assert config(user, folder)["model"]["optimizer"]["init_args"]["lr"] == rate
    import torch

    state = torch.load(user / folder / "checkpoints" / "last.ckpt" / "trainer_state.pt")
    assert state["optimizer_states"][0]["param_groups"][0]["initial_lr"] == rate


def test_the_printed_config_holds_the_rate_of_the_run_and_can_be_incomplete(runs):
    _, results = runs
    status, output, _ = results["print_config"]
    assert status == 0
    assert yaml.safe_load(output)["model"]["optimizer"]["init_args"]["lr"] == 2e-4
    assert results["print_nothing"][0] == 0
    assert yaml.safe_load(results["print_nothing"][1])["model"]["base_model"] is None


def test_ctrl_c_leaves_a_checkpoint_and_status_130(user):
    command = ["-m", "peft_lightning", "fit", "--config", "good.yaml"]
    command += ["--trainer.max_steps", "-1", "--trainer.max_epochs", "10000"]
    command += ["--trainer.default_root_dir", "stopped"]
    process = warm_python.start(command, cwd=user, env=ENVIRONMENT, stderr=subprocess.PIPE)
    last = user / "stopped" / "checkpoints" / "last.ckpt"
    wait_for(last)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert f"stopped at step {saved_step(last)}; " in errors
    assert "Traceback" not in errors
