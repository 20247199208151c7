"""Two processes compute what one does, by DDP and by FSDP2, and go on where one stopped."""

import fcntl
import json
import shutil

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from safetensors.torch import load_file

import warm_python
from peft_lightning.adapters.folder import FACTS_FILE, write_files
from peft_lightning.training.cluster.strategies import FSDP2Strategy, require_supported
from peft_lightning.training.run_dir import LOCK_FILE
from processes import in_processes, outcome, run
from tiny_run import write_base, write_rows

STRATEGIES = ["ddp", "fsdp2"]
LORA = {"r": 2, "init_lora_weights": False}
SAMPLED = {"sgd": False, "sample_prompts": ["say"], "sample_max_new_tokens": 5}
SETUPS = {  # 9 rows in steps of 4, 4 and 1: the last leaves one of two processes without a row
    "lora": {},
    "prompt": {"adapter": ["PromptTuning", {"num_virtual_tokens": 3}]},
    "upper layer, recomputed": {
        "adapter": ["LoRA", {**LORA, "layers_to_transform": [1]}],
        "module": {"activation_checkpointing": True},
    },
    "accumulation, clipped": {
        "data": {"batch_size": 1},
        "trainer": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.05},
    },
    "full": {"adapter": ["Full", {}], "trainer": {"gradient_clip_val": 0.05}},
    "clipped by value": {
        "trainer": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    },
    "validation": {
        "data": {"val_fraction": 0.4, "batch_size": 1},
        "module": {**SAMPLED, "learning_rate": 0.3},
        "trainer": {"max_epochs": 3},
    },
    "one row to validate": {
        "data": {"val_fraction": 0.1, "batch_size": 1},
        "module": {"sgd": False, "learning_rate": 0.3},
        "trainer": {"max_epochs": 2},
    },
    "full, validation": {
        "adapter": ["Full", {}],
        "data": {"val_fraction": 0.4, "batch_size": 1, "layout": "padded"},
        "module": SAMPLED,
        "trainer": {"max_epochs": 2},
    },
}
# 18 rows, steps of 4: 5 an epoch. One process takes batches of 4, two take batches of 2.
RESUMED = {"module": {"sgd": False}, "trainer": {"max_epochs": 3}, "every": 1}
STOPS = [(2, "ddp"), (5, "ddp"), (8, "ddp"), (8, "fsdp2")]  # 5: on an epoch's last batch


def both(setup, strategy, base, rows):
    """Return the options of a run on one process and of the same run on two."""
    plain = {"base": str(base), "rows": str(rows)}
    two = {**plain, "data": {"batch_size": 2}, **SETUPS[setup]}
    micro = two.get("trainer", {}).get("accumulate_grad_batches", 1)
    one = {**two, "data": {**two["data"], "batch_size": 2 * micro * two["data"]["batch_size"]}}
    one["trainer"] = {**two.get("trainer", {}), "accumulate_grad_batches": 1}
    two["trainer"] = {**two.get("trainer", {}), "strategy": strategy}
    return one, two


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All runs: those of one process, those of two, and those that go on from each other."""
    root = tmp_path_factory.mktemp("strategies")
    base = write_base(root / "gpt2", "gpt2", torch.float64)
    nine, eighteen = write_rows(root / "9.jsonl", 9), write_rows(root / "18.jsonl", 18)
    resumed = {"base": str(base), "rows": str(eighteen), **RESUMED}
    one, two = ({**resumed, "data": {"batch_size": size}} for size in (4, 2))

    def last(name):
        return {"ckpt_path": str(root / name / "run/checkpoints/last.ckpt")}

    runs = {}
    for setup in SETUPS:
        for strategy in STRATEGIES:
            single, runs[f"two/{setup} {strategy}"] = both(setup, strategy, base, nine)
        run(root / "one" / setup, single, 1)
    run(root / "one/whole", one, 1)
    for stop in {stop for stop, _ in STOPS}:
        run(root / f"one/stopped {stop}", {**one, "stop_after": stop}, 1)
    for stop, strategy in STOPS:
        options = {**two, "trainer": {**RESUMED["trainer"], "strategy": strategy}}
        runs[f"two/from one {stop} {strategy}"] = {**options, **last(f"one/stopped {stop}")}
        runs[f"two/stopped {stop} {strategy}"] = {**options, "stop_after": stop}
    for strategy, other in zip(STRATEGIES, reversed(STRATEGIES), strict=True):
        options = {**two, "trainer": {**RESUMED["trainer"], "strategy": strategy}}
        runs[f"two/from {other} {strategy}"] = {**options, **last(f"two/stopped 8 {other}")}
    _, frozen = both("upper layer, recomputed", "fsdp2", base, nine)
    runs["two/frozen"] = {**frozen, "module": {"cache_hidden_states": True}}
    runs["two/compiled"] = {**frozen, "module": {"compile": True}}
    runs["two/locked"] = two
    (root / "two/locked/run").mkdir(parents=True)
    with (root / "two/locked/run" / LOCK_FILE).open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        in_processes(2, root, runs)
    for stop, strategy in STOPS:
        name = f"{stop} {strategy}"
        run(root / f"one/from two {name}", {**one, **last(f"two/stopped {name}")}, 1)
    return root


def weights(folder, name):
    assert outcome(folder, name)["error"] is None
    return load_file(folder / name / "weights.safetensors")


def assert_same(ours, expected):
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-7, atol=1e-9)


def rows_by_step(folder, name, ranks):
    """Return the rows of each optimizer step, in the order of ranks; empty batches left out."""
    steps = {}
    for rank in range(ranks):
        for epoch, step, rows in outcome(folder, name, rank)["rows"]:
            steps.setdefault((epoch, step), []).extend(row for row in rows if len(row) > 1)
    return steps


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("setup", SETUPS)
def test_two_processes_train_the_weights_of_one(folder, setup, strategy):
    assert_same(weights(folder, f"two/{setup} {strategy}"), weights(folder, f"one/{setup}"))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_runs_leave_a_process_without_a_row(folder, strategy):
    sizes = [
        [len(rows) for _, _, rows in outcome(folder, f"two/lora {strategy}", rank)["rows"]]
        for rank in (0, 1)
    ]
    assert sizes == [[2, 2, 1], [2, 2, 1]]
    assert outcome(folder, f"two/lora {strategy}", 1)["rows"][-1][-1] == [[0]]  # the empty batch


def facts(file):
    """Return what a JSON file of a checkpoint says, but for the run's own name."""
    return {k: v for k, v in json.loads(file.read_text()).items() if k != "run"}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("setup", ["validation", "full, validation"])
def test_two_processes_report_the_losses_and_choose_the_checkpoint_of_one(folder, setup, strategy):
    one, two = f"one/{setup}", f"two/{setup} {strategy}"
    losses = outcome(folder, one)["losses"]
    for rank in (0, 1):
        assert outcome(folder, two, rank)["validated"] == pytest.approx(min(losses), rel=1e-6)
        assert outcome(folder, two, rank)["losses"] == pytest.approx(losses, rel=1e-6)  # float32

    for checkpoint in ("best.ckpt", "last.ckpt"):
        ours, theirs = (folder / name / "run/checkpoints" / checkpoint for name in (two, one))
        assert facts(ours / FACTS_FILE) == facts(theirs / FACTS_FILE)
    samples = [folder / name / "run/samples.jsonl" for name in (one, two)]
    of_one, of_two = ([json.loads(line) for line in s.read_text().splitlines()] for s in samples)
    if strategy == "fsdp2":  # the base alone cannot be had from sharded layers, which is said
        of_one = [line for line in of_one if line["step"] > 0]
    assert of_one == of_two


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("setup", ["lora", "full"])
def test_the_first_process_alone_writes_and_the_folder_is_whole(folder, setup, strategy):
    name = f"two/{setup} {strategy}"
    assert outcome(folder, name, 0)["saves"] == ["last.ckpt"]
    assert outcome(folder, name, 1)["saves"] == []
    written, expected = (folder / n / "run/checkpoints/last.ckpt" for n in (name, f"one/{setup}"))
    assert {p.name for p in written.iterdir()} == {p.name for p in expected.iterdir()}
    file = "model.safetensors" if setup == "full" else "adapter_model.safetensors"
    assert_same(load_file(written / file), load_file(expected / file))
    for text in written.glob("*.json"):
        assert facts(text) == facts(expected / text.name)


RESUMES = {
    **{f"two/from one {stop} {strategy}": (f"one/stopped {stop}", 1) for stop, strategy in STOPS},
    **{f"one/from two {stop} {s}": (f"two/stopped {stop} {s}", 2) for stop, s in STOPS},
    "two/from ddp fsdp2": ("two/stopped 8 ddp", 2),
    "two/from fsdp2 ddp": ("two/stopped 8 fsdp2", 2),
}


@pytest.mark.parametrize("name", RESUMES)
def test_a_run_goes_on_with_other_processes_as_if_it_had_not_stopped(folder, name):
    before, ranks = RESUMES[name]
    whole = rows_by_step(folder, "one/whole", 1)
    parts = rows_by_step(folder, before, ranks)
    after = rows_by_step(folder, name, 2 if name.startswith("two") else 1)
    assert not parts.keys() & after.keys()
    assert parts | after == whole
    assert_same(weights(folder, name), weights(folder, "one/whole"))


def test_processes_draw_different_numbers_also_those_a_checkpoint_does_not_know(folder):
    def noise(name, rank):
        return outcome(folder, name, rank)["noise"]

    first = noise("two/lora ddp", 1)
    assert noise("two/stopped 8 fsdp2", 1) == noise("two/from fsdp2 ddp", 1) == first  # restored
    unknown = [noise(f"two/from one {stop} ddp", 1) for stop in (2, 5, 8)]
    assert noise("two/from one 8 fsdp2", 1) == unknown[-1]  # the same each time
    zeroth = noise("two/from one 2 ddp", 0)
    assert zeroth == noise("one/whole", 0)
    assert len({zeroth, first, *unknown}) == 5


@pytest.mark.parametrize(
    ("strategy", "advice"),
    [
        ("fsdp", "use fsdp2"),
        ("ddp_notebook", "use ddp"),
        ("deepspeed_stage_2", "use fsdp2"),
        ("lightning.pytorch.strategies.ModelParallelStrategy", "use fsdp2"),
        (DDPStrategy(start_method="spawn"), "use ddp"),
        (ModelParallelStrategy(), "use fsdp2"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_strategy_that_cannot_work_is_refused_with_what_to_use(strategy, advice):
    with pytest.raises(ValueError, match=rf"does not work with adapters: .*: {advice}"):
        require_supported(strategy)


@pytest.mark.parametrize("strategy", ["auto", "ddp", "fsdp2", DDPStrategy(), FSDP2Strategy()])
def test_the_others_are_not(strategy):
    require_supported(strategy)


def test_the_command_line_refuses_it_before_anything_is_loaded(base, rows, tmp_path):
    options = ["--model.base_model", str(base), "--data.train", str(rows)]
    options += ["--trainer.default_root_dir", str(tmp_path), "--trainer.strategy", "fsdp"]
    done = warm_python.run(["-m", "peft_lightning", "fit", *options])
    assert done.returncode == 2
    assert "trainer.strategy fsdp does not work with adapters" in done.stderr
    assert "use fsdp2" in done.stderr


@pytest.mark.skipif(shutil.which("g++") is None, reason="model.compile needs a C++ compiler")
def test_layers_cannot_be_compiled_where_they_are_sharded(folder):
    error = outcome(folder, "two/compiled")["error"]
    assert error.startswith("UserError: compile: true does not go with strategy fsdp2")


def test_frozen_layers_cannot_be_skipped_where_they_are_sharded(folder):
    error = outcome(folder, "two/frozen")["error"]
    assert error.startswith("UserError: cache_hidden_states: true does not go with strategy fsdp2")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_folder_that_another_run_trains_in_is_refused_in_every_process(folder, rank):
    error = outcome(folder, "two/locked", rank)["error"]
    assert error.startswith("SharedError: another run is training in")


def test_sharded_tensors_are_not_written(tmp_path):
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        part = torch.distributed.tensor.distribute_tensor(torch.ones(2), mesh)
        with pytest.raises(ValueError, match="refusing to save: a are sharded over processes"):
            write_files(tmp_path, "adapter_model.safetensors", {"a": part}, {})
    finally:
        torch.distributed.destroy_process_group()
    assert not list(tmp_path.iterdir())
