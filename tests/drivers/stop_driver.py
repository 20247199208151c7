"""Runs command lines in forked children and sends each a signal in the middle of a phase.

Usage: python stop_driver.py, scenarios as JSON on standard input. One process imports once; each
command is a fork of it that runs ``peft_lightning.__main__`` as ``python -m`` would. A scenario is

    {"args": [...], "folder": where, "phase": one of PHASES or "", "signals": [numbers],
     "input": text}

The phase is made ten minutes long, of many small operations. The child says when it begins, and is
sent the signals then, 0.3 s apart. Prints the status, the seconds from the first signal to the
end, and the output of each.
"""

import hashlib
import json
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers

import peft_lightning.cli.trainer  # noqa: F401  (imported once, before the forks)
from peft_lightning.data import cache
from peft_lightning.module import CausalLMModule
from peft_lightning.training import checkpoint_io

SECONDS = 600
AFTER = 2  # optimizer steps before the one that is slow
Layer: Any = transformers.models.llama.modeling_llama.LlamaDecoderLayer
steps = 0
is_in_phase = False


def enter() -> None:
    """Say that the phase has begun, and spend ten minutes in small operations."""
    global is_in_phase
    if not is_in_phase:
        is_in_phase = True
        os.write(1, b"in the phase\n")
    end, x = time.monotonic() + SECONDS, torch.ones(8, 8)
    while time.monotonic() < end:
        x = x @ x / 8


class Slow(torch.autograd.Function):
    """The identity; slow where ``when`` says so."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, when: str) -> torch.Tensor:
        ctx.when = when
        is_recomputed = torch._C._current_graph_task_id() != -1
        if steps == AFTER and when == ("recompute" if is_recomputed else "forward"):
            enter()
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # type: ignore[override]
        if steps == AFTER and ctx.when == "backward":
            enter()
        return gradient, None


def before(owner: Any, name: str, slow: Callable[[], bool]) -> None:
    """Let a function of ``owner`` begin slowly where ``slow()``."""
    function = getattr(owner, name)

    def slowed(*args: Any, **kwargs: Any) -> Any:
        if slow():
            enter()
        return function(*args, **kwargs)

    setattr(owner, name, slowed)


def in_layer(phase: str) -> None:
    forward = Layer.forward
    Layer.forward = lambda self, x, *args, **kwargs: forward(
        self, Slow.apply(x, phase), *args, **kwargs
    )


def outside_python() -> None:
    """Begin a call that takes minutes and does not come back to Python."""

    def slow(*args: Any, **kwargs: Any) -> None:
        os.write(1, b"in the phase\n")
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000_000)

    transformers.AutoModelForCausalLM.from_pretrained = slow


def nth_answer() -> None:
    """Make the third batch of answers slow; what probes the model is none."""
    generate, calls = transformers.GenerationMixin.generate, iter(range(1000))

    def slowed(*args: Any, **kwargs: Any) -> Any:
        if "stopping_criteria" in kwargs and next(calls) == 2:
            enter()
        return generate(*args, **kwargs)

    transformers.GenerationMixin.generate = slowed


def within_held(owner: Any, name: str) -> None:
    """Say in the third call of a function that it has begun, and then take a while over it."""
    function, calls = getattr(owner, name), iter(range(1000))

    def slowed(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        if next(calls) == AFTER:
            os.write(1, b"in the phase\n")
            for _ in range(100):
                time.sleep(0.01)
        return result

    setattr(owner, name, slowed)


PHASES: dict[str, Callable[[], None]] = {
    "tokenizing": lambda: before(cache, "row_results", lambda: True),
    "loading": lambda: before(transformers.AutoModelForCausalLM, "from_pretrained", lambda: True),
    "outside Python": outside_python,
    "cached pass": lambda: before(Layer, "forward", lambda: not torch.is_grad_enabled()),
    "first step": lambda: before(CausalLMModule, "training_step", lambda: steps == 0),
    "forward": lambda: in_layer("forward"),
    "backward": lambda: in_layer("backward"),
    "recompute": lambda: in_layer("recompute"),
    "optimizer step": lambda: within_held(torch.optim.AdamW, "step"),
    "save": lambda: within_held(checkpoint_io, "write_state"),
    "validation": lambda: before(CausalLMModule, "validation_step", lambda: steps > AFTER),
    "last validation": lambda: before(CausalLMModule, "validation_step", lambda: steps == 5),
    "first samples": lambda: before(CausalLMModule, "generate", lambda: steps == 0),
    "samples": lambda: before(CausalLMModule, "generate", lambda: steps > 0),
    "answers": nth_answer,
    "answer": lambda: before(transformers.GenerationMixin, "generate", lambda: True),
}


def child(scenario: dict[str, Any], output: int) -> None:
    """Be ``python -m peft_lightning ARGS`` in a process of its own."""
    os.chdir(scenario["folder"])
    os.dup2(output, 1)
    with open("input.txt", "w+") as given:
        given.write(scenario.get("input", ""))
        given.seek(0)
        os.dup2(given.fileno(), 0)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    errors = os.open("errors.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(errors, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    step = CausalLMModule.optimizer_step

    def optimizer_step(self: Any, *args: Any, **kwargs: Any) -> None:
        global steps
        step(self, *args, **kwargs)
        steps += 1

    CausalLMModule.optimizer_step = optimizer_step  # type: ignore[method-assign]
    if scenario.get("phase"):
        PHASES[scenario["phase"]]()
    sys.argv = ["peft_lightning", *scenario["args"]]
    status = 1
    try:
        runpy.run_module("peft_lightning", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run(scenario: dict[str, Any]) -> dict[str, Any]:
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reader)
        child(scenario, writer)
    os.close(writer)
    output, start = b"", 0.0
    while part := os.read(reader, 4096):
        output += part
        if scenario.get("phase") and not start and b"in the phase" in output:
            time.sleep(0.1)
            start = time.monotonic()
            for number in scenario["signals"]:
                os.kill(process, number)
                time.sleep(0.3 * (len(scenario["signals"]) > 1))
    _, status = os.waitpid(process, 0)
    with open(os.path.join(scenario["folder"], "errors.txt")) as errors:
        text = errors.read()
    return {
        "status": os.waitstatus_to_exitcode(status),
        "seconds": time.monotonic() - start if start else None,
        "output": output.decode(),
        "errors": text,
    }


if __name__ == "__main__":
    for given in json.load(sys.stdin):
        print(json.dumps(run(given)), flush=True)
