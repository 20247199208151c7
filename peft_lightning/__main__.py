"""``python -m peft_lightning``: finds the command, before anything heavy is imported."""

from __future__ import annotations

from peft_lightning.messages import SharedError, UserError
from peft_lightning.process.signals import STOP, StopSignal, own_line

if __name__ == "__main__":  # from here on, a signal ends the program with one line
    STOP.own_process()

import gc
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from signal import Signals

from peft_lightning.messages import did_you_mean
from peft_lightning.process import slurm
from peft_lightning.process.progress import STARTING, Progress
from peft_lightning.process.progress_line import rank
from peft_lightning.process.resources import limit_threads

PROG = "python -m peft_lightning"

TRAINER_COMMANDS = {
    "fit": "Train an adapter on a frozen base model.",
    "validate": "Measure the loss on the validation data.",
    "test": "Measure the loss on the test data.",
    "predict": "Answer the prompts of a data set.",
}

# name: one line of help; the function of that name in commands/<name>.py is the command line,
# with _ instead of -
OWN_COMMANDS = {
    "plan": "Say what fit will need: rows, steps, memory, time, disk.",
    "find-lr": "Suggest a learning rate, by steps whose rate grows.",
    "audit": "Show what fit would train on: rows, counts, and what is wrong with them.",
    "generate": "Answer prompts with a base model and adapters.",
    "chat": "Talk with a base model and adapters in the terminal.",
    "combine": "Combine LoRA adapters: weighted sum, TIES, DARE.",
    "resize": "Reduce the rank of a LoRA adapter.",
    "extract": "Make a LoRA adapter of what full fine-tuning has changed.",
    "inspect": "Show what is in a checkpoint or an adapter's folder.",
    "report": "Write the page of a run anew: its curves, samples, sizes and options.",
    "export": "Write an adapter, or a model with it merged, as a GGUF file for llama.cpp.",
    "merge": "Merge an adapter into its base: a model's folder.",
    "compare": "Compare runs with their base: what differs beyond noise, as a page and tables.",
    "card": "Write the model card of an adapter.",
    "push": "Upload an adapter to the model hub.",
    "sweep": "Train one config over values and seeds, one run after the other.",
    "submit": "Train as a SLURM job that outlives preemption and crashes.",
    "check-serving": "Say whether vLLM, transformers and llama.cpp take an adapter.",
}

TALKING = {"chat"}  # without a progress line, which would overwrite what the user types

EXAMPLES = """\
examples:
  {prog} fit --model.base_model NAME --data.train data/train.jsonl
  {prog} fit --config configs/lora.yaml
  {prog} fit --config configs/lora.yaml --model.adapter.r 8 --trainer.max_steps 100
  {prog} fit --config configs/lora.yaml --ckpt_path last
  {prog} test --config configs/lora.yaml --data.test data/test.jsonl --ckpt_path best"""


def main_help() -> str:
    """Return the help of the program: its commands with one line each, and examples."""
    commands = {**TRAINER_COMMANDS, **OWN_COMMANDS}
    lines = [f"usage: {PROG} COMMAND [OPTIONS]", "", "commands:"]
    lines += [f"  {name:<{max(map(len, commands))}}  {text}" for name, text in commands.items()]
    lines += ["", EXAMPLES.format(prog=PROG), ""]
    lines += [
        f"{PROG} COMMAND --help   the options of a command",
        f"{PROG} --version",
        "--adapter_class MODULE.CLASS           import an adapter of your own, for any command",
        "--debug                                show the traceback of an error",
    ]
    return "\n".join(lines)


def find_command(args: list[str]) -> str:
    """Return the command, the first of ``args``.

    Raises:
        UserError: If it is not a known command; the message has the right command line.
    """
    names = [*TRAINER_COMMANDS, *OWN_COMMANDS]
    first = args[0]
    if first in names:
        return first
    if first.startswith("-"):
        command = next((a for a in args if a in names), None)
        rest = [a for a in args if a != command]
        raise UserError(
            f"{first} comes after the command: {PROG} {' '.join([command or 'fit', *rest])}"
        )
    raise UserError(
        f"there is no command {first!r}; there are: {', '.join(names)}" + did_you_mean(first, names)
    )


@contextmanager
def no_collecting() -> Iterator[None]:
    """Import without garbage collection, which takes a seventh of the time and frees nothing."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def run(args: list[str]) -> None:
    """Run the command line ``args``, without the program's name."""
    if args[:1] == ["help"]:
        args = [*args[1:], "--help"]
    if not args or args[0] in ("-h", "--help"):
        print(main_help())
        return
    if args[0] in ("--version", "-V", "version"):
        from peft_lightning import __version__

        print(__version__)
        return
    command, rest = find_command(args), args[1:]
    limit_threads()  # before torch is loaded
    from peft_lightning.cli.adapter_classes import import_adapter_classes, take_adapter_classes

    classes, rest = take_adapter_classes(rest)
    if command in ("submit", "sweep"):  # what they start has to import them, too
        rest += [f"--adapter_class={path}" for path in classes]
    asks_help = any(a in ("-h", "--help", "--help-all") for a in rest)
    if asks_help and command in TRAINER_COMMANDS:
        if "--help-all" not in rest and "all" not in rest:
            from peft_lightning.cli.help import command_help

            print(command_help(command, TRAINER_COMMANDS[command]))
            return
        rest = ["--help"]
    if command in OWN_COMMANDS:
        from peft_lightning.cli.command import run_function

        name = command.replace("-", "_")
        with no_collecting():
            module = importlib.import_module(f"peft_lightning.commands.{name}")
        with nullcontext() if command in TALKING else Progress(f"{command}:"):
            if not asks_help:
                import_adapter_classes(classes)
            run_function(getattr(module, name), rest, prog=f"{PROG} {command}")
        return
    from peft_lightning.cli.config_index import configs_first, read_arguments

    rest = configs_first(rest)
    index = read_arguments(rest)  # reports a missing file or bad YAML before the heavy imports
    if command == "fit" and not index.entries:
        from peft_lightning.cli.fit_defaults import TWO_OPTIONS

        raise UserError(TWO_OPTIONS)
    if command == "fit" and slurm.TOKEN in os.environ:
        from peft_lightning.cli.config_index import run_root
        from peft_lightning.training.cluster.job_starts import begin_start

        begin_start(run_root(rest, index))
    with STARTING:
        with no_collecting():
            from peft_lightning.cli.trainer import run_trainer

        import_adapter_classes(classes)
        run_trainer(command, rest, index)


def stopped(command: str, number: int) -> int:
    """Print one line: which signal has stopped ``command``, and which results are saved.

    Returns:
        The exit status.
    """
    STOP.answer()
    if (lost := lost_partner(STOP.failure)) is not None:
        end_children(number)
        return lost
    if STOP.failure is not None:
        end_children(number)
        return failed(STOP.failure) or 1
    kept = STOP.kept()
    if command == "fit":
        kept = " before the first step, nothing new to save"
    end_children(number)
    if os.environ.get("LOCAL_RANK", "0") == "0":  # the other ranks print nothing
        print(f"{own_line()}{Signals(number).name}: stopped{kept}", file=sys.stderr, flush=True)
    if command != "fit":
        return 128 + number
    say = partial(print, file=sys.stderr, flush=True)
    return slurm.stop_status(number, say, is_alone=True)


def end_children(number: int) -> None:
    """Forward a signal to the child processes: other ranks and data workers."""
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # one that has just ended
            for child in (task / "children").read_text().split():
                with suppress(ProcessLookupError):
                    os.kill(int(child), number)


def main(args: list[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Args:
        args: Without the program's name; those of the process if None.

    Returns:
        0 after success, 2 for an error that the user can correct, 1 if training failed, 128 plus
        the number of a signal, 130 for Ctrl-C. Unexpected exceptions are not caught.
    """
    args = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in args
    args = [a for a in args if a != "--debug"]
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # so that a console script finds my_experiment.py too
    command = args[0] if args else ""
    STOP.leave = lambda number: stopped(command, number)
    try:
        if STOP.is_owner:
            STOP.release()
        run(args)
    except KeyboardInterrupt:
        return 130
    except SystemExit as end:
        if (lost := lost_partner(None)) is not None:
            return lost
        if STOP.is_pending and not (isinstance(end, StopSignal) and end.is_answered):
            return stopped(command, STOP.received or 0)
        if isinstance(end.__context__, KeyboardInterrupt):  # Lightning turns Ctrl-C into exit(1)
            return 130
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception as error:
        if not debug and (lost := lost_partner(error)) is not None:
            return lost
        slurm.note_failure(" ".join(str(error).split()) or type(error).__name__)
        if STOP.is_pending and not debug and STOP.failure is None:  # a consequence of the signal
            return stopped(command, STOP.received or 0)
        status = None if debug else failed(error)
        if status is None:
            if has_partners():  # its line comes before the traceback
                tell_others(error, 1, is_bug=True)
            raise
        return status
    return 0


def failed(error: BaseException) -> int | None:
    """Print an error as one line.

    Returns:
        The exit status; None for an unexpected error, which needs its traceback.
    """
    from peft_lightning.cli.errors import exit_status

    status = exit_status(error)
    if status is not None or STOP.is_pending:
        tell_others(error, status or 1)
    return status


def tell_others(error: BaseException, status: int, is_bug: bool = False) -> None:
    """Print an error, with its process if there are several, and end the others by it."""
    from peft_lightning.cli.errors import one_line

    line, name = one_line(error), ""
    if isinstance(error, SharedError) and rank() != 0:
        return
    if is_bug:
        line = f"{type(error).__name__}: {line}"
    if has_partners():
        from peft_lightning.training.cluster.partners import name_of_process, tell_partners

        name = "" if isinstance(error, SharedError) else name_of_process()
    print(f"error: {name}{line}", file=sys.stderr, flush=True)
    if has_partners():
        tell_partners(line, status)


def lost_partner(error: BaseException | None) -> int | None:
    """Return the status of another process of the run that has failed; None if none has."""
    if not has_partners():
        return None
    from peft_lightning.training.cluster.partners import partner_failure

    return partner_failure(error)


def has_partners() -> bool:
    """Whether this process trains together with others, and must exit in the usual way."""
    torch = sys.modules.get("torch.distributed")
    return torch is not None and torch.is_available() and torch.is_initialized()


if __name__ == "__main__":
    status = main()
    if (STOP.is_pending and not has_partners()) or lost_partner(None) is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # the usual exit takes a second with torch, and waits for threads
    STOP.ignore()
    sys.exit(status)
