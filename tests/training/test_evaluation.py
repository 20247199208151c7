"""The loss of each validation source, and of all: exact to the token, in one process or two."""

import csv
import json
import re

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from cli_driver import drive
from peft_lightning import CausalLMModule, LoRA, PromptTuning, SFTDataModule
from peft_lightning.training.evaluation import Evaluation
from processes import in_processes, outcome, run
from tiny_run import fit, write_base, write_rows

MEANS = ("loss", "perplexity", "token_accuracy", "bits_per_byte")
SUMS = 1e-6  # relative: sums in another order of rows, and logged values are float32


@pytest.fixture(scope="module")
def base64(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("double"), dtype=torch.float64)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two files of unequal size, and a file with the rows of both."""
    folder = tmp_path_factory.mktemp("files")
    chat, code = write_rows(folder / "chat.jsonl", 7, 1), write_rows(folder / "code.jsonl", 3, 2)
    both = folder / "both.jsonl"
    both.write_text(chat.read_text() + code.read_text())
    return {"chat": str(chat), "code": str(code), "both": str(both)}


def evaluated(base, cache, adapter=None, trainer=None, stage="validate", **data):
    """Return the metrics of an untrained random adapter."""
    L.seed_everything(0, verbose=False)
    module = CausalLMModule(str(base), adapter or LoRA(r=2, init_lora_weights=False))
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    runner = L.Trainer(**options, precision="64-true", **(trainer or {}))
    datamodule = SFTDataModule(**{"batch_size": 2, "cache_dir": str(cache), **data})
    (found,) = getattr(runner, stage)(module, datamodule, verbose=False)
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_size": 3, "layout": "padded"},
        {"tokens_per_batch": 100},
        {"adapter": PromptTuning(num_virtual_tokens=3)},
    ],
    ids=str,
)
def test_the_loss_of_a_source_is_that_of_its_file_and_the_loss_that_of_all_rows(
    base64, files, tmp_path, options
):
    named = {name: files[name] for name in ("chat", "code")}
    found = evaluated(base64, tmp_path, val=named, **options)
    whole = evaluated(base64, tmp_path, val=files["both"], **options)
    assert set(whole) == {f"val/{mean}" for mean in MEANS}
    expected = dict(whole)
    for name, path in named.items():
        alone = evaluated(base64, tmp_path, val=path, **options)
        expected |= {f"{metric}/{name}": value for metric, value in alone.items()}
    assert found == {name: pytest.approx(value, rel=SUMS) for name, value in expected.items()}
    assert expected["val/loss/chat"] != pytest.approx(expected["val/loss/code"], rel=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_test_rows_have_losses_by_source_too(base64, files, tmp_path):
    paths = [files["chat"], files["code"]]
    found = evaluated(base64, tmp_path, stage="test", test=paths)
    assert set(found) == {f"test/{mean}{end}" for mean in MEANS for end in ("", "/chat", "/code")}


@pytest.mark.filterwarnings("ignore")
def test_a_part_of_the_batches_is_of_all_sources(base64, files, tmp_path):
    named = {name: files[name] for name in ("chat", "code")}
    found = evaluated(base64, tmp_path, trainer={"limit_val_batches": 2}, val=named)
    assert {"val/loss/chat", "val/loss/code"} <= set(found)
    first = evaluated(base64, tmp_path, trainer={"limit_val_batches": 1}, val=named)
    assert "val/loss/code" not in first  # of which no batch was seen
    assert first["val/loss"] == first["val/loss/chat"]


@pytest.mark.filterwarnings("ignore")
def test_a_run_logs_each_source_and_the_best_checkpoint_is_of_the_loss_over_all(
    base, rows, files, tmp_path
):
    root, named = tmp_path / "run", {"chat": files["chat"], "code v1.5": files["code"]}
    logger = CSVLogger(root, name="logs")
    trainer = fit(base, rows, root, data={"val": named}, logger=logger, num_sanity_val_steps=2)
    with (root / "logs/version_0/metrics.csv").open() as file:
        logged = [row for row in csv.DictReader(file) if row["val/loss"]]
    assert len(logged) == 2  # one per epoch; the sanity check is not logged
    for row in logged:
        assert all(float(row[f"val/loss{end}"]) > 0 for end in ("", "/chat", "/code v1.5"))
    best = min(float(row["val/loss"]) for row in logged)
    assert trainer.checkpoint_callback.best_model_score == pytest.approx(best)
    last = json.loads((root / "summary.json").read_text())["last"]
    assert last["val/loss/code v1.5"] == pytest.approx(float(logged[-1]["val/loss/code v1.5"]))


@pytest.mark.filterwarnings("ignore")
def test_held_out_rows_of_several_sources_have_losses_by_source(base, files, tmp_path):
    trainer = fit(
        base, [files["chat"], files["code"]], tmp_path / "run", data={"val_fraction": 0.4}
    )
    assert {"val/loss", "val/loss/chat", "val/loss/code"} <= trainer.callback_metrics.keys()


def test_an_experiment_may_have_a_validation_step_of_its_own(base, rows, files, tmp_path):
    class Own(CausalLMModule):
        def validation_step(self, batch, batch_idx):
            nll, tokens = self.nll(batch)
            self.log("val/loss", nll / tokens, batch_size=int(tokens))

    data = {"val": [files["chat"], files["code"]]}
    trainer = fit(base, rows, tmp_path / "run", data=data, module_class=Own)
    assert "val/loss" in trainer.callback_metrics
    assert "val/loss/chat" not in trainer.callback_metrics


def test_the_means_are_weighted_by_tokens_and_forgotten_once_logged():
    class Module:
        def __init__(self):
            self.logged = {}

        def log(self, name, value, **options):
            self.logged[name] = value.item()

    evaluation = Evaluation()
    for nll, tokens, correct, source in [(4, 2, 1, "a"), (6, 1, 1, "b"), (0, 0, 0, "b")]:
        evaluation.update(*map(torch.tensor, (float(nll), tokens, correct)), {"source": source})
    module = Module()
    evaluation.log(module, "val")
    losses = {name: value for name, value in module.logged.items() if "/loss" in name}
    assert losses == pytest.approx({"val/loss": 10 / 3, "val/loss/a": 2, "val/loss/b": 6})
    assert module.logged["val/token_accuracy/a"] == 0.5
    evaluation.log(again := Module(), "val")
    assert again.logged == {}


@pytest.mark.filterwarnings("ignore")
def test_two_processes_have_the_losses_of_one_by_source(tmp_path, files):
    """5 and 3 batches of 2 and 1 rows: processes run out of rows in the middle of the order."""
    base = write_base(tmp_path / "gpt2", "gpt2", torch.float64)
    named = {"chat": files["chat"], "code": files["code"]}
    plain = {"base": str(base), "rows": str(write_rows(tmp_path / "rows.jsonl", 4))}
    sizes = {"val_batch_size": 1, "val": named}
    runs = {
        "all": {**plain, "data": {"batch_size": 2, **sizes}},
        "limited": {
            **plain,
            "data": {"batch_size": 2, **sizes},
            "trainer": {"limit_val_batches": 3},
        },
    }
    in_processes(2, tmp_path / "two", runs)
    for name, options in runs.items():
        one = {**options, "data": {"batch_size": 4, "val_batch_size": 2, "val": named}}
        run(tmp_path / "one" / name, one, 1)
        ranks = [outcome(tmp_path / "two", name, rank) for rank in range(2)]
        assert ranks[0]["metrics"] == ranks[1]["metrics"]
        expected = outcome(tmp_path / "one", name)["metrics"]
        assert {"val/loss", "val/loss/chat", "val/loss/code"} <= expected.keys()
        assert ranks[0]["metrics"] == {
            metric: pytest.approx(value, rel=1e-6) for metric, value in expected.items()
        }


@pytest.fixture(scope="module")
def ran(tmp_path_factory, base, rows, files):
    """The folder and (status, output, errors) of some command lines."""
    user = tmp_path_factory.mktemp("user")
    (user / "rows.jsonl").write_text(rows.read_text())
    for name in ("chat", "code"):
        with open(files[name]) as file:
            (user / f"{name}.jsonl").write_text(file.read())
    (user / "good.yaml").write_text(
        f"model: {{base_model: {base}, adapter: {{class_path: LoRA, init_args: {{r: 2}}}}}}\n"
        "data:\n"
        "  train: {rows.jsonl: 0.75, chat.jsonl: 0.25}\n"
        "  val: {chat: chat.jsonl, code: code.jsonl}\n"
        "  batch_size: 4\n"
        "  cache_dir: cache\n"
        "trainer: {max_epochs: 1, accelerator: cpu, enable_progress_bar: false}\n"
    )
    (user / "twice.yaml").write_text(
        "data:\n  train:\n    rows.jsonl: 1\n    chat.jsonl: 1\n    rows.jsonl: 2\n"
    )
    fit = ["fit", "--config", "good.yaml"]
    lines = {
        "fit": fit,
        "list": [
            *[
                *fit,
                "--trainer.default_root_dir",
                "list",
                "--data.train",
                "[chat.jsonl,chat.jsonl]",
            ],
            *["--data.val", "[code.jsonl,chat.jsonl]", "--data.max_rows", "2"],
            *["--data.tokens_per_batch", "100"],
        ],
        "validate": ["validate", "--config", "runs/good/config.yaml", "--ckpt_path", "best"],
        "ambiguous": [*fit, "--overwrite", "--data.train", "{rows.jsonl: 70, chat.jsonl: 30}"],
        "text": [*fit, "--overwrite", "--data.train", "{rows.jsonl: x}"],
        "numbers": [*fit, "--overwrite", "--data.val", "{rows.jsonl: 0.5}"],
        "key twice": ["fit", "--config", "good.yaml", "--config", "twice.yaml"],
    }
    return user, dict(zip(lines, drive(user, list(lines.values())), strict=True))


def test_the_command_line_logs_and_prints_the_loss_of_each_source(ran):
    user, results = ran
    assert results["fit"][0] == 0, results["fit"][2]
    logged = (user / "runs/good/logs/version_0/metrics.csv").read_text().splitlines()[0]
    assert {"val/loss", "val/loss/chat", "val/token_accuracy/code"} <= set(logged.split(","))
    status, output, errors = results["validate"]
    assert status == 0, errors
    assert output.count("val/loss/chat ") == output.count("val/loss ") == 1


def test_the_command_line_says_what_an_epoch_takes_from_each_source(ran):
    said = ran[1]["fit"][2]
    # 24 rows are 0.75 of 32, and 7 rows 0.25 of 28
    assert "rows.jsonl         24             24  1.00 x  75.0% " in said
    assert "chat.jsonl          7              8  1.14 x  25.0% " in said
    assert "an epoch: 32 rows, " in said
    assert "data.val: chat.jsonl is trained on too, so val/loss is not that of unseen rows" in said


def test_the_command_line_reads_a_file_twice_and_no_more_than_max_rows(ran):
    status, _, said = ran[1]["list"]
    assert status == 0, said
    assert "data.train: chat.jsonl is given 2 times, and read as often" in said
    assert "chat.jsonl: the first 2 rows are read, as data.max_rows says" in said
    assert "an epoch: 4 rows, " in said
    assert "data.tokens_per_batch 100 is filled to " in said


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ambiguous", r"^error: --data\.train gives its sources the numbers 70, 30: set data\.mix"),
        ("text", r"^error: --data\.train maps paths to numbers, .*, got \{rows\.jsonl: x\}"),
        ("numbers", r"^error: --data\.val maps names to paths, .*, got \{rows\.jsonl: 0\.5\}"),
        ("key twice", r"twice\.yaml, line 5: 'rows\.jsonl' is given twice in data\.train"),
    ],
)
def test_a_mistake_about_sources_is_one_line(ran, name, message):
    status, _, errors = ran[1][name]
    assert status == 2, errors
    assert errors.count("error: ") == 1
    assert re.search(message, errors, re.MULTILINE), errors
