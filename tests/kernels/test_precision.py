"""Precision follows the hardware: the rule over facts, and what loading, runs and commands do."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from peft_lightning import CausalLMModule, Full, LoRA, load_base_model
from peft_lightning.base_model import base_fingerprint
from peft_lightning.kernels.machine import Machine, device_of, find_machine
from peft_lightning.kernels.precision import (
    RULE,
    Choice,
    choice_of,
    choose,
    choose_precision,
    emulation_notice,
    row_of,
    times_slower,
)
from peft_lightning.training.precision import precision_of_run, resolve_precision
from tiny_run import fit, write_base

AMX = Machine(flags=frozenset({"amx_bf16", "avx512_bf16"}))
AVX512 = Machine(flags=frozenset({"avx512_bf16"}), vendor="AuthenticAMD")
WITHOUT_AMX = Machine(flags=frozenset({"avx512_bf16"}), vendor="GenuineIntel")  # slower so
ARM = Machine(flags=frozenset({"arm_bf16"}))
SKYLAKE = Machine(onednn_bfloat16=True)  # AVX512 without BF16: oneDNN takes it and emulates
AVX2 = Machine(onednn_bfloat16=False)
RESTRICTED = Machine(flags=AMX.flags, max_isa="AVX2", onednn_bfloat16=False)
T4, V100 = Machine("cuda", (7, 5)), Machine("cuda", (7, 0))
A100, H100, P100 = Machine("cuda", (8, 0)), Machine("cuda", (9, 0)), Machine("cuda", (6, 0))
MAC = Machine("mps")
NATIVE_CPUS = [AMX, AVX512, ARM]
FLOAT32_CPUS = [SKYLAKE, AVX2, RESTRICTED, WITHOUT_AMX]

AS_AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
ROOT = Path(__file__).parents[2]


# ---- the rule ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "products"),
    [
        *[(machine, "bf16-mixed") for machine in (*NATIVE_CPUS, A100, H100)],
        *[(machine, "16-mixed") for machine in (T4, V100)],
        *[(machine, "32-true") for machine in (*FLOAT32_CPUS, P100, MAC)],
    ],
)
def test_a_run_multiplies_what_the_processor_has_instructions_for(machine, products):
    assert choose_precision(machine) == products
    weights = {"bf16-mixed": "bfloat16", "16-mixed": "float16", "32-true": "float32"}[products]
    assert choose(machine, precision=products, saved="bfloat16").dtype == weights


@pytest.mark.parametrize(
    ("limit", "instructions"),
    [
        ("", "AMX"),
        ("DEFAULT", "AMX"),
        ("AVX512_CORE_AMX", "AMX"),
        ("avx512_core_bf16", "AVX512-BF16"),  # oneDNN takes the older ones then
        ("AVX512_CORE", ""),
        ("avx2_vnni_2", ""),
        ("AVX2", ""),
    ],
)
def test_a_limit_on_onednns_instructions_counts_as_their_absence(limit, instructions):
    assert Machine(flags=AMX.flags, max_isa=limit).cpu_bfloat16 == instructions


@pytest.mark.parametrize("machine", [*NATIVE_CPUS, *FLOAT32_CPUS], ids=range(7))
@pytest.mark.parametrize("saved", ["float32", "bfloat16", "float16", None])
@pytest.mark.parametrize("in_run", [False, True])
def test_float16_products_are_never_chosen_on_a_cpu(machine, saved, in_run):
    found = choose(machine, precision=choose_precision(machine) if in_run else None, saved=saved)
    assert found.dtype != "float16"
    assert found.emulated is None


@pytest.mark.parametrize(
    ("machine", "saved", "dtype"),
    [
        (AMX, "bfloat16", "bfloat16"),
        (AMX, "float32", "float32"),
        (AMX, "float16", "float32"),
        (AMX, None, "float32"),
        (AVX2, "bfloat16", "float32"),
        (AVX2, "float16", "float32"),
        (AVX2, "float64", "float64"),
        (A100, "float16", "float16"),
        (A100, "bfloat16", "bfloat16"),
        (T4, "bfloat16", "float16"),
        (T4, "float16", "float16"),
        (MAC, "bfloat16", "float32"),
    ],
)
def test_outside_a_run_weights_stay_as_saved_or_become_float32(machine, saved, dtype):
    assert choose(machine, saved=saved).dtype == dtype


def test_a_run_says_which_saved_weights_it_rounds():
    assert "saved in float16, rounded" in choose(AMX, "auto", "bf16-mixed", "float16").reason
    assert "saved in float32, rounded" in choose(T4, "auto", "16-mixed", "float32").reason
    assert "rounded" not in choose(AVX2, "auto", "32-true", "float16").reason
    assert "rounded" not in choose(AMX, "auto", "bf16-mixed", "bfloat16").reason


def test_weights_that_are_trained_are_float32_in_every_run():
    for machine in (AMX, AVX2, T4, A100):
        run = choose_precision(machine)
        assert choose(machine, "auto", run, "bfloat16", trains_weights=True).dtype == "float32"


@pytest.mark.parametrize(
    ("machine", "dtype", "products"),
    [
        (AMX, "float32", "32-true"),
        (AMX, "float16", "bf16-mixed"),
        (AVX2, "bfloat16", "32-true"),
        (AVX2, "float16", "32-true"),
        (A100, "float16", "16-mixed"),
        (T4, "bfloat16", "16-mixed"),
    ],
)
def test_the_type_that_a_user_names_for_the_weights_decides_the_products(machine, dtype, products):
    assert choose_precision(machine, dtype) == products
    assert choose(machine, dtype, products, "float32").dtype == dtype


@pytest.mark.parametrize(
    ("machine", "dtype", "products", "emulated"),
    [
        (AVX2, "auto", "bf16-mixed", "bfloat16"),
        (AVX2, "auto", "bf16-true", "bfloat16"),
        (SKYLAKE, "float32", "bf16-mixed", "bfloat16"),
        (AMX, "auto", "16-true", "float16"),
        (AMX, "auto", "bf16-mixed", None),
        (AVX2, "auto", "32-true", None),
        (AVX2, "bfloat16", "32-true", None),  # layers are converted one by one
        (AVX2, "bfloat16", None, None),
        (AMX, "float16", None, None),
        (T4, "bfloat16", "16-mixed", None),
    ],
)
def test_products_that_a_cpu_has_no_instructions_for_are_known(machine, dtype, products, emulated):
    assert choose(machine, dtype, products, "float32").emulated == emulated


def test_two_bytes_a_weight_are_multiplied_in_float32_where_that_is_fast():
    assert choose(AVX2, "bfloat16", "32-true", "bfloat16").emulated is None
    assert choose(AVX2, "float16", None, "float16").emulated is None
    assert choose(AVX2, "bfloat16", "bf16-mixed").emulated == "bfloat16"  # asked for twice


@pytest.mark.parametrize(
    ("memory", "saved", "dtype"),
    [
        (6_000, "float16", "float16"),
        (6_000, "bfloat16", "bfloat16"),
        (6_000, "float32", "bfloat16"),
        (7_000, "bfloat16", "float32"),  # 4 x 1,000 bytes are 57 % of it
        (None, "bfloat16", "float32"),
    ],
)
def test_where_memory_is_short_weights_take_two_bytes(memory, saved, dtype):
    machine = Machine(onednn_bfloat16=False, memory=memory)
    options = {"precision": "32-true", "saved": saved, "parameters": lambda: 1000}
    found = choose(machine, **options)
    assert (found.dtype, found.precision, found.emulated) == (dtype, "32-true", None)
    assert ("memory is short" in found.reason) == (dtype != "float32")
    assert choose(machine, "float32", **options).dtype == "float32"
    assert choose(machine, **options, trains_weights=True).dtype == "float32"


def test_every_row_of_the_rule_has_its_reason_and_a_machine():
    rows = {id(row_of(machine)) for machine in (A100, T4, AMX, AVX2)}
    assert rows == {id(row) for row in RULE.values()}
    assert all(row.why for row in RULE.values())


# ---- this machine -----------------------------------------------------------------------------


def facts_of_a_process(environment):
    code = (
        "from peft_lightning.kernels.machine import find_machine as f\n"
        "from peft_lightning.kernels.precision import choose_precision as c\n"
        "print(repr(f().cpu_bfloat16), c(f()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_a_process_that_is_kept_to_avx2_computes_in_float32():
    assert facts_of_a_process(AS_AVX2) == ["''", "32-true"]
    assert facts_of_a_process({"DNNL_MAX_CPU_ISA": "avx2"}) == ["''", "32-true"]


def test_the_facts_of_this_cpu_are_those_that_linux_reports():
    if not Path("/proc/cpuinfo").is_file() or find_machine().max_isa:
        pytest.skip("Linux says what a processor has, in /proc/cpuinfo")
    words = set(Path("/proc/cpuinfo").read_text().split())
    fast = {"amx_bf16", "bf16"} | (set() if "GenuineIntel" in words else {"avx512_bf16"})
    assert bool(find_machine().cpu_bfloat16) == bool(words & fast)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpus_facts_are_torchs():
    assert find_machine("cuda").capability == min(
        torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())
    )


def test_the_device_of_lightnings_accelerators():
    from lightning.pytorch.accelerators import CPUAccelerator

    assert device_of("cpu") == device_of(CPUAccelerator()) == "cpu"
    assert device_of("auto") == ("cuda" if torch.cuda.is_available() else device_of("gpu"))


def test_a_notice_names_the_factor_and_what_to_write():
    line = emulation_notice(Choice("bfloat16", "bf16-mixed", "", "bfloat16"), "this")
    assert line.startswith("bfloat16 is slow on this CPU: a product takes ")
    assert line.endswith(" times as long as in float32 (measured now); this is faster")
    assert times_slower("bfloat16") > 0
    assert emulation_notice(Choice("float32", "32-true", ""), "x") == ""


# ---- loading ----------------------------------------------------------------------------------


@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_base_is_loaded_in_what_the_rule_says(saved, tmp_path):
    write_base(tmp_path, dtype=saved)
    name = str(saved).removeprefix("torch.")
    model = load_base_model(str(tmp_path))
    assert str(model.dtype) == f"torch.{choose(find_machine(), saved=name).dtype}"
    assert choice_of(model).dtype == str(model.dtype).removeprefix("torch.")
    assert load_base_model(str(tmp_path), dtype="saved").dtype == saved
    assert load_base_model(str(tmp_path), frozen=False).dtype == torch.float32


@pytest.mark.parametrize(
    ("machine", "run", "dtype"),
    [(AMX, "bf16-mixed", "bfloat16"), (T4, "16-mixed", "float16"), (AVX2, "32-true", "float32")],
)
def test_a_base_has_one_fingerprint_on_every_kind_of_machine(machine, run, dtype, tmp_path):
    plain = load_base_model(str(write_base(tmp_path)), dtype="float32")
    model = load_base_model(str(tmp_path), precision=run, machine=machine)
    assert str(model.dtype) == f"torch.{dtype}"
    assert base_fingerprint(model) == base_fingerprint(plain)


def test_short_memory_is_told_from_the_files_of_the_base(tmp_path):
    write_base(tmp_path, dtype=torch.bfloat16)
    count = sum(p.numel() for p in load_base_model(str(tmp_path)).parameters())
    for factor, dtype in ((7, torch.float32), (6, torch.bfloat16)):
        machine = Machine(onednn_bfloat16=False, memory=int(factor * count * 1.02))
        assert load_base_model(str(tmp_path), machine=machine).dtype == dtype


# ---- runs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "dtype"), [("bf16-mixed", torch.bfloat16), ("32-true", torch.float32), (None, None)]
)
def test_a_module_loads_its_base_in_what_a_trainer_in_python_computes(run, dtype, rows, tmp_path):
    base = write_base(tmp_path / "base", dtype=torch.bfloat16)
    trainer = fit(base, rows, tmp_path / "run", max_steps=1, precision=run)
    module = trainer.lightning_module
    assert module.model.dtype == (dtype or torch.float32)  # Lightning's default is 32-true
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["dtype"] == str(module.model.dtype).removeprefix("torch.")
    assert summary["paths"]["precision"].startswith(f"{trainer.precision}, {summary['dtype']}")
    assert summary["threads"] == torch.get_num_threads()
    facts = json.loads((tmp_path / "run/checkpoints/last.ckpt/peft_lightning.json").read_text())
    assert (facts["dtype"], facts["precision"]) == (summary["dtype"], trainer.precision)


@pytest.mark.parametrize("adapter", [Full(), LoRA(target_modules=["c_attn"], bias="all")])
def test_trained_weights_are_float32_whatever_the_products_are(adapter, bases, rows, tmp_path):
    base = bases["gpt2"]
    options = {"max_steps": 1, "precision": "bf16-mixed", "enable_checkpointing": False}
    trainer = fit(base, rows, tmp_path / "run", adapter=adapter, **options)
    assert trainer.lightning_module.model.dtype == torch.float32


def test_a_resume_in_another_type_says_so_and_one_in_the_same_does_not(
    base, rows, tmp_path, caplog
):
    root = tmp_path / "run"
    fit(base, rows, root, max_steps=2, precision="32-true")
    first = str(shutil.copytree(root / "checkpoints" / "last.ckpt", tmp_path / "first.ckpt"))
    for run, said in (("bf16-mixed", True), ("32-true", False)):
        caplog.clear()
        with caplog.at_level("INFO"):
            fit(base, rows, root, max_steps=3, precision=run, ckpt_path=first)
        found = [r.message for r in caplog.records if "goes on with" in r.message]
        assert len(found) == said
        assert all("with 32-true over float32 weights, " in line for line in found)


def test_16_mixed_on_a_cpu_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"precision 16-mixed needs a GPU.*: auto is \S+ on this"):
        resolve_precision("16-mixed", "cpu", "auto")
    assert resolve_precision("bf16-mixed", "cpu", "auto") == "bf16-mixed"


# ---- the command line, on this processor and on one without bfloat16 --------------------------


@pytest.fixture(scope="module", params=["this processor", "AVX2"])
def runs(request, base, rows, tmp_path_factory):
    """The processor's name, the folder, and (status, output, errors) of each run."""
    from cli_driver import drive

    folder = tmp_path_factory.mktemp("cli")
    half = write_base(tmp_path_factory.mktemp("half"), dtype=torch.float16)
    plain = ["--data.train", str(rows), "--data.cache_dir", "cache", "--trainer.accelerator", "cpu"]
    plain += ["--trainer.max_steps", "1", "--trainer.enable_progress_bar", "false"]
    fits = {
        "auto": ["--model.base_model", str(base)],
        "half": ["--model.base_model", str(half)],
        "emulated": ["--model.base_model", str(base), "--trainer.precision", "bf16-mixed"],
        "sixteen": ["--model.base_model", str(base), "--trainer.precision", "16-mixed"],
        "many": ["--model.base_model", str(base), "--trainer.devices", "99"],
    }
    lines = [
        ["fit", *options, *plain, "--trainer.default_root_dir", name]
        for name, options in fits.items()
    ]
    ckpt = "auto/checkpoints/last.ckpt"
    lines.append(["generate", "--ckpt_path", ckpt, "--prompt", "say 1", "--max_new_tokens", "1"])
    lines.append([*lines[-1], "--dtype", "bfloat16"])
    limits = AS_AVX2 if request.param == "AVX2" else {}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in limits.items():
            patch.setitem(drive.__globals__["ENVIRONMENT"], name, value)
        results = drive(folder, lines)
    names = [*fits, "generate", "generate in bfloat16"]
    expected = facts_of_a_process(limits)[1]
    return expected, folder, dict(zip(names, results, strict=True))


def test_a_run_of_the_command_line_takes_what_suits_the_processor_and_says_why(runs):
    expected, folder, results = runs
    status, output, errors = results["auto"]
    assert status == 0, errors
    weights = {"bf16-mixed": "bfloat16", "32-true": "float32"}[expected]
    [line] = [line for line in output.splitlines() if line.startswith("precision ")]
    assert line.split(maxsplit=1)[1].startswith(f"{expected}, {weights} weights: this CPU ")
    assert any(line.startswith("threads ") for line in output.splitlines())
    summary = json.loads((folder / "auto" / "summary.json").read_text())
    assert (summary["precision"], summary["dtype"]) == (expected, weights)
    assert "is slow on this CPU" not in output + errors


def test_the_saved_config_says_auto_so_that_a_run_moves_between_machines(runs):
    import yaml

    config = yaml.safe_load((runs[1] / "auto" / "config.yaml").read_text())
    assert config["trainer"]["precision"] == config["model"]["dtype"] == "auto"


def test_a_float16_base_is_computed_in_the_fast_type(runs):
    expected, folder, results = runs
    assert results["half"][0] == 0
    assert json.loads((folder / "half" / "summary.json").read_text())["precision"] == expected
    assert ("saved in float16, rounded" in results["half"][1]) == (expected == "bf16-mixed")


def test_slow_products_are_done_and_said_in_one_line(runs):
    expected, folder, results = runs
    for name, is_slow in (("emulated", expected == "32-true"), ("generate in bfloat16", False)):
        status, output, errors = results[name]
        assert status == 0, errors
        found = [line for line in (output + errors).splitlines() if "is slow on this CPU" in line]
        assert len(found) == is_slow, output + errors
    assert json.loads((folder / "emulated/summary.json").read_text())["precision"] == "bf16-mixed"
    assert "is slow on this CPU" not in results["generate"][1] + results["generate"][2]


def test_what_cannot_be_computed_is_refused(runs):
    _, _, results = runs
    status, _, errors = results["sixteen"]
    assert status == 2
    assert "\nerror: --trainer.precision 16-mixed needs a GPU" in f"\n{errors}"
    status, _, errors = results["many"]
    assert status == 2
    assert "\nerror: --trainer.devices: 99 processes on " in f"\n{errors}"


def test_an_accelerator_that_is_not_known_is_left_to_lightning():
    assert resolve_precision("auto", "tpu", "auto") == "32-true"
    assert resolve_precision("auto", "gpuu", "auto") == "32-true"


@pytest.mark.parametrize("first", ["bf16-mixed", "32-true"])
def test_processes_on_machines_of_two_kinds_do_not_compute_in_two_types(first):
    strategy = type("Strategy", (), {"broadcast": lambda self, own: first, "root_device": "cpu"})()
    facts = {"world_size": 2, "global_rank": 1, "precision": "32-true", "strategy": strategy}
    trainer = type("Trainer", (), facts)()
    if first == "32-true":
        assert precision_of_run(trainer)["precision"] == "32-true"
        return
    with pytest.raises(ValueError, match="process 1 computes in 32-true and the first one in bf16"):
        precision_of_run(trainer)
    assert precision_of_run(None) == {}


def test_a_plugin_says_the_precision_of_a_trainer(tmp_path):
    from lightning.pytorch.plugins import MixedPrecision

    from peft_lightning.training.trainer import precision_option

    options = type("Options", (), {"precision": "auto", "accelerator": "cpu", "plugins": None})()
    assert precision_option(options, "float32") == "32-true"
    options.plugins = MixedPrecision("bf16-mixed", "cpu")
    assert precision_option(options, "auto") is None


def test_an_experiment_module_without_a_trainer_loads_as_saved(base):
    module = CausalLMModule(str(base), LoRA(r=2))
    module.configure_model()
    assert module.model.dtype == torch.float32
