"""The time of a run from a few timed steps, by hand; and which batches are timed."""

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from peft_lightning import CausalLMModule, Full, LoRA
from peft_lightning.experiments.plan.facts import RowFacts
from peft_lightning.experiments.plan.gpu import estimate, find_gpu
from peft_lightning.experiments.plan.measured import Measured, choose, resident
from peft_lightning.experiments.plan.measured_run import require_room
from peft_lightning.experiments.plan.model_shape import ModelShape, StepOptions
from peft_lightning.experiments.plan.seconds import batch_time, gpu_seconds, measured_seconds
from peft_lightning.experiments.plan.steps import StepFacts
from peft_lightning.messages import UserError
from peft_lightning.training.throughput import peak_memory

STEPS = StepFacts(
    *(30, 3.0, 20, 2, 1, 100.0, 150),  # 30 steps of 2 batches in 3 epochs of 20 batches
    validations=3,
    validation_batches=4,
)
VAL = RowFacts(10, 400, 100, 50, 0, 0, 50, {})
MEASURED = Measured(
    batches=[(100, 3.0), (150, 1.6), (50, 0.6), (100, 1.1), (200, 2.1)],
    optimizer=[0.2, 0.1, 0.15],
    val_batches=[(100, 0.4), (60, 0.24)],
    val_rest=0.5,
    saves=[0.2, 0.4],
    start=7.0,
    tokenizing=1.0,
    end=0.25,
)


def test_a_batch_takes_a_fixed_time_and_one_for_each_token():
    time = batch_time(MEASURED.batches)  # but for the first, 0.1 s and 0.01 s a token
    assert (time.fixed, time.per_token) == (pytest.approx(0.1), pytest.approx(0.01))
    alike = batch_time([(100, 9.0), (100, 1.0), (110, 1.1), (105, 0.9), (95, 1.1)])
    assert (alike.fixed, alike.per_token) == (0.0, pytest.approx(4.1 / 410))


def test_a_runs_time_is_that_of_its_steps_validations_and_checkpoints():
    found = measured_seconds(MEASURED, STEPS, VAL, every_n_steps=10)
    assert found.step == pytest.approx(2 * 1.1 + 0.15)
    # 60 batches of 100 tokens, 30 optimizer steps, and 1.9 s more of the first batch
    assert found.training == pytest.approx(60 * 1.1 + 30 * 0.15 + 1.9)
    assert found.validation == pytest.approx(3 * (400 * 0.004 + 0.5))
    assert found.saving == pytest.approx((2 * 3 + 3) * 0.3 + 0.25)  # best and last, and each 10th
    assert found.start == 8.0
    parts = (found.start, found.training, found.validation, found.saving)
    assert found.total == pytest.approx(sum(parts))
    assert found.tokens_per_second == pytest.approx(100 / 1.1)


def test_processes_share_the_cores_of_a_cpu_and_have_a_gpu_each():
    two = replace(STEPS, processes=2)
    on_cpu = measured_seconds(MEASURED, two, VAL, None)
    on_gpu = measured_seconds(replace(MEASURED, device="cuda"), two, VAL, None)
    assert on_cpu.step == pytest.approx(2 * 2.2 + 0.15)
    assert on_gpu.step == pytest.approx(2.2 + 0.15)
    assert on_gpu.tokens_per_second == pytest.approx(2 * on_cpu.tokens_per_second)


def test_a_limit_of_time_ends_the_run():
    forever = replace(STEPS, steps=math.inf, epochs=math.inf, max_seconds=47.0)
    assert measured_seconds(MEASURED, forever, VAL, None).training == pytest.approx(47.0)
    short = replace(STEPS, max_seconds=10.0)
    assert measured_seconds(MEASURED, short, VAL, None).training == 10.0


def test_on_a_named_gpu_tokens_take_the_time_of_their_operations():
    shape = ModelShape(2, 8, 20, 4, 100, 5000, 1000, 300)
    gpu = estimate(find_gpu("h100"), "bf16-mixed", shape, StepOptions(150), 100, 0.5, 10)
    found = gpu_seconds(gpu, replace(STEPS, processes=2), VAL, start=30.0)
    assert found.training == pytest.approx(60 * 100 * gpu.seconds_per_token)
    # a forward pass is half of the operations; each process has half of the rows
    assert found.validation == pytest.approx(3 * 200 * gpu.seconds_per_token / 2)
    assert found.tokens_per_second == pytest.approx(2 / gpu.seconds_per_token)


def test_the_second_batch_is_the_largest_and_the_others_are_of_all_sizes():
    lengths = np.arange(1, 101)
    batches = [np.array([i]) for i in range(100)]
    chosen = choose(batches, lengths, 9)
    sizes = [int(lengths[batch].sum()) for batch in chosen]
    assert sizes[1] == 100
    rest = sizes[:1] + sizes[2:]
    assert abs(np.mean(rest) - 50.5) < 8  # what is timed is as large as the mean
    assert min(rest) < 20 < 80 < max(rest)
    few = choose(batches[:3], lengths, 9)  # an epoch of 3 ends before a second batch could be late
    assert [int(lengths[batch].sum()) for batch in few[:1]] == [3]


def test_memory_is_that_of_this_process_and_not_of_the_one_that_started_it():
    cpu = torch.device("cpu")
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("the system does not say what a process has had at most")
    assert 0 < resident(cpu) <= peak_memory(cpu)
    ballast = bytearray(os.urandom(1)) * 2**26
    assert resident(cpu) > len(ballast)
    most = int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024
    assert abs(peak_memory(cpu) - most) < 2**22


def test_weights_that_this_machine_has_no_room_for_are_refused_before_they_are_loaded(base):
    saved = (base / "model.safetensors").stat().st_size
    module = CausalLMModule(str(base), LoRA(r=2))
    require_room(module, saved)
    require_room(module, None)
    with pytest.raises(UserError, match=r"need at least .* GiB left: --gpu NAME plans for another"):
        require_room(module, saved // 2 - 1)
    require_room(CausalLMModule(str(base), Full()), 4 * saved)
    with pytest.raises(UserError, match="need at least"):
        require_room(CausalLMModule(str(base), Full()), 4 * saved - 1)
