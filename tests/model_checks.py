"""What a causal language model of transformers does here, against itself and HF PEFT.

``check_model`` writes a tiny random model of a class, adapts, trains, saves, merges and answers by
it, and says of each of these whether it is right. What it is compared with is transformers' own
forward, row by row and without padding, and HF PEFT over that.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig

from peft_lightning import CausalLMModule, LoRA, PromptTuning
from peft_lightning.adapters import Adapter, save_adapter
from peft_lightning.commands.merge import merge
from peft_lightning.data.collate import flat_collate, padded_collate
from peft_lightning.inference.generate import generate_tokens
from peft_lightning.messages import UserError
from tiny_configs import VOCABULARY, tiny_config
from tiny_run import byte_tokenizer

LENGTHS = (5, 13, 20, 20)  # beyond the windows of 8, and two rows of one length
RIGHT = "right"
TOLERANCE = 2e-4  # of float32 through layers whose weights have a deviation of 0.2, not 0.02
NEW_TOKENS = 5


class WrongError(AssertionError):
    """What was computed is not what the model computes."""


def token_rows(lengths: tuple[int, ...] = LENGTHS) -> list[Tensor]:
    """Return random token ids, no special ones among them."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(8, 250, (n,), generator=generator) for n in lengths]


def write_model(model_type: str, folder: Path) -> int:
    """Write a tiny random model with a byte tokenizer; return its number of parameters.

    Weights are far from zero, so that layers and masks that should matter do. What is written is
    what transformers loads: it sets some to zero (Youtu's padding row).
    """
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(model_type))
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "A_log" not in name:
            nn.init.normal_(parameter, std=0.2)
        elif parameter.is_floating_point():
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())


def own_model(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Return the model as transformers loads it, with the attention that it chooses."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    model.config.get_text_config().use_cache = False  # a state that is changed has no gradient
    return model


def family_of(model: Any) -> str:
    """Return what kind of model it is, by what its config has."""
    config = model.config.get_text_config()
    fields = set(config.to_dict())
    layers = " ".join(str(kind) for kind in getattr(config, "layer_types", None) or [])
    state = re.search(r"mamba|ssm|state_size|linear_num|attention_hidden_size|conv_L", str(fields))
    if state or re.search(r"linear|conv|recurrent|mamba", layers) or "xlstm" in config.model_type:
        return "Recurrent and hybrid models"
    experts = [n for n in fields if re.fullmatch(r"(\w+_)?(num_|n_)\w*experts|expert_num", n)]
    if any((getattr(config, name, 0) or 0) > 1 for name in experts):
        return "Mixtures of experts"
    if config.to_dict().get("is_decoder") or "decoder_layers" in fields:
        return "Decoders of encoder models"
    return "Dense decoders"


def own_losses(model: Any, rows: list[Tensor]) -> list[Tensor]:
    """Return the summed loss of each row in transformers' own forward, without padding."""
    losses = []
    for ids in rows:
        logits = model(input_ids=ids[None]).logits[0, :-1]
        losses.append(F.cross_entropy(logits, ids[1:], reduction="sum"))
    return losses


def batch_of(rows: list[Tensor], layout: str) -> dict[str, Any]:
    """Return rows, all labelled, as a batch of the data module."""
    items = [{"input_ids": ids.numpy(), "labels": ids.numpy()} for ids in rows]
    return flat_collate(items) if layout == "flat" else padded_collate(items, 0)


def require_near(found: Any, expected: Any, what: str) -> None:
    """Raise WrongError if two tensors differ by more than rounding, as a whole."""
    found, expected = (torch.as_tensor(x).detach().double() for x in (found, expected))
    size = expected.norm().clamp(min=1e-6)
    error = ((found - expected).norm() / size).item()
    if not error <= TOLERANCE:
        raise WrongError(f"{what} by {error:.2g}")


class OwnError(Exception):
    """What transformers cannot compute itself."""


class ModelCheck:
    """The checks of one class, in a folder of its own.

    Args:
        model_type: That of its config.
        folder: Where the model and its adapters are written.
    """

    def __init__(self, model_type: str, folder: Path) -> None:
        self.folder, self.base = folder, folder / "base"
        self.parameters = write_model(model_type, self.base)
        self.rows, self.layout = token_rows(), "flat"
        self.prompts = [ids.tolist() for ids in self.rows[:3]]
        self.tokens = sum(len(ids) - 1 for ids in self.rows)
        model = own_model(self.base)
        self.class_name, self.family = type(model).__name__, family_of(model)

    def module(self, adapter: Adapter) -> CausalLMModule:
        torch.manual_seed(0)
        module = CausalLMModule(str(self.base), adapter)
        module.configure_model()
        return module

    def save(self, module: CausalLMModule, name: str) -> Path:
        folder = self.folder / name
        facts = {"base_fingerprint": module.fingerprint, "base_model": str(self.base)}
        save_adapter(module.adapter, module.model, folder, facts)
        return folder

    def in_hf_peft(self, folder: Path, train: bool = False) -> Any:
        """Return the model with an adapter as HF PEFT reads it; a missing tensor is an error."""
        from peft import PeftModel

        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*(missing|unexpected).*adapter keys.*")
            return PeftModel.from_pretrained(own_model(self.base), folder, is_trainable=train)

    def losses(self) -> None:
        """Compare the loss with a random LoRA: flat, padded, and row by row."""
        adapter = LoRA(r=2, lora_alpha=2, init_lora_weights=False)
        self.lora = module = self.module(adapter)
        self.own = own_model(self.base)
        adapter.attach(self.own)
        self.same_as(module, self.own)
        with torch.no_grad():
            losses = [float(loss) for loss in own_losses(self.own, self.rows)]
            try:
                require_near(module.nll(batch_of(self.rows, "flat"))[0], sum(losses), "flat loss")
            except UserError:
                self.layout = "padded"  # as it says
            padded = module.nll(batch_of(self.rows, "padded"))[0]
            require_near(padded, sum(losses), "padded loss")
            for ids, loss in zip(self.rows, losses, strict=True):
                batch = batch_of([ids], "padded")
                require_near(module.nll(batch)[0], loss, f"loss of {len(ids)} tokens alone")

    def same_as(self, module: CausalLMModule, other: Any) -> None:
        """Give ``other``, a model with the same adapter, the tensors of ``module``."""
        tensors = module.adapter.tensors(module.model)
        own = module.adapter.tensors(other)
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(tensors[name])

    def gradients(self) -> None:
        """Compare the gradients of all updates with those of transformers' own forward."""
        sum(own_losses(self.own, self.rows)).backward()
        self.lora.nll(batch_of(self.rows, self.layout))[0].backward()
        theirs = self.lora.adapter.tensors(self.own)
        ours = self.lora.adapter.tensors(self.lora.model)
        if dead := [n for n, t in ours.items() if t.grad is None or theirs[n].grad is None]:
            raise WrongError(f"{dead[0]} has no gradient")
        gradients = [[t.grad.flatten() for t in each.values()] for each in (ours, theirs)]
        require_near(torch.cat(gradients[0]), torch.cat(gradients[1]), "gradients")

    def train(self, module: CausalLMModule) -> None:
        """Take three steps."""
        optimizer = torch.optim.AdamW(module.trainable_parameters(), 1e-2)
        before = [p.detach().clone() for p in module.trainable_parameters()]
        for _ in range(3):
            optimizer.zero_grad()
            (module.nll(batch_of(self.rows, self.layout))[0] / self.tokens).backward()
            optimizer.step()
        if all(map(torch.equal, before, module.trainable_parameters())):
            raise WrongError("three steps moved nothing")

    def folder_in_hf_peft(self) -> None:
        """Train and save the LoRA, and compare HF PEFT's loss and gradients of the folder."""
        self.train(self.lora)
        self.saved = self.save(self.lora, "trained")
        self.same_as(self.lora, self.own)
        self.own.zero_grad()
        losses, hf = sum(own_losses(self.own, self.rows)), self.in_hf_peft(self.saved, train=True)
        theirs = sum(own_losses(hf, self.rows))
        require_near(losses, theirs, "HF PEFT's loss")
        losses.backward()
        theirs.backward()
        tensors = self.lora.adapter.tensors(self.own)
        found = {n.replace(".default", ""): p.grad for n, p in hf.named_parameters()}
        require_near(
            torch.cat([tensor.grad.flatten() for tensor in tensors.values()]),
            torch.cat([found[name].flatten() for name in tensors]),
            "HF PEFT's gradients",
        )

    def merged(self) -> None:
        """Merge, by the command, which verifies; load the result by transformers."""
        merge(str(self.saved), str(self.folder / "merged"))
        with torch.no_grad():
            loss = sum(own_losses(own_model(self.folder / "merged"), self.rows))
            require_near(loss, sum(own_losses(self.own, self.rows)), "merged loss")

    def answers(self) -> None:
        """Compare greedy answers: alone, batched, and by transformers' generate."""
        self.require_answers(self.lora, self.own_answers())

    def prompt_tuning(self) -> None:
        """Train virtual tokens, save, read by HF PEFT, and answer alone and batched."""
        module = self.module(PromptTuning(num_virtual_tokens=3))
        self.train(module)
        folder = self.save(module, "prompt")
        self.require_answers(module, None)
        with torch.no_grad():
            inputs = {"input_ids": self.rows[1][None]}
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            theirs = self.in_hf_peft(folder)(**inputs).logits[0, -1]
            ours = module.model(**module.adapter.prepare_inputs(module.model, inputs)).logits[0, -1]
            require_near(ours, theirs, "logits of virtual tokens in HF PEFT")

    def require_answers(self, module: CausalLMModule, expected: list[list[int]] | None) -> None:
        alone, batched = (
            generate_tokens(
                module.model,
                module.adapter,
                byte_tokenizer(),
                self.prompts,
                NEW_TOKENS,
                batch_size=size,
                end_ids=(),
            )
            for size in (1, 3)
        )
        if alone != batched:
            raise WrongError("answers in a batch differ from those alone")
        if expected is not None and alone != expected:
            raise WrongError("answers differ from those of transformers' generate")

    def own_answers(self) -> list[list[int]]:
        """Return the answers of transformers' generate, each alone."""
        self.own.generation_config = GenerationConfig()
        options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
        answers = []
        for ids in self.prompts:
            given = torch.tensor([ids])
            options |= {"attention_mask": torch.ones_like(given), "use_cache": True}
            try:
                answers.append(self.own.generate(given, **options)[0, len(ids) :].tolist())
            except Exception as error:  # whatever it is
                raise OwnError(f"{type(error).__name__}: {_line(error)}") from error
        return answers

    @property
    def way(self) -> str:
        """How flat batches are computed."""
        found = self.lora.outputs._check.own.checked.get(("flat", "LoRA"))
        return "" if found is None else str(found.way)


CHECKS = {  # methods of ModelCheck, and what the table calls them
    "losses": "loss",
    "gradients": "gradients",
    "folder_in_hf_peft": "folder in HF PEFT",
    "merged": "merged",
    "answers": "answers",
    "prompt_tuning": "virtual tokens",
}


def check_model(model_type: str, folder: Path) -> dict[str, Any]:
    """Return what is right of a class and what is not: a text for each of ``CHECKS``.

    ``right``; ``refused: REASON``, by an error that names a way out; ``WRONG: WHAT``; ``fails:
    ERROR``; or ``fails in transformers: ERROR``, of its own forward or generate. Without a model,
    ``cannot be made`` says why.
    """
    found: dict[str, Any] = {"model_type": model_type}
    try:
        with _quiet():
            check = ModelCheck(model_type, folder)
            with torch.no_grad():
                own_losses(own_model(check.base), check.rows)
    except Exception as error:  # of a class that asks for what a rule does not know
        return found | {"cannot be made": _line(error)}
    found |= {"class": check.class_name, "parameters": check.parameters, "family": check.family}
    said = StringIO()
    for name in CHECKS:
        with _quiet(said):
            found[name] = _outcome(getattr(check, name))
        if name == "losses":
            found["way"] = check.way if hasattr(check, "lora") else ""
            if found[name].startswith("refused"):
                break
    lines = [line for line in said.getvalue().splitlines() if check.class_name in line]
    return found | {"said": list(dict.fromkeys(lines))}


def _outcome(check: Callable[[], None]) -> str:
    try:
        check()
    except WrongError as error:
        return f"WRONG: {error}"
    except OwnError as error:
        return f"fails in transformers: {error}"
    except UserError as error:
        return f"refused: {_line(error)}"
    except (Exception, SystemExit) as error:  # whatever a model makes of it
        return f"fails: {type(error).__name__}: {_line(error)}"
    return RIGHT


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextmanager
def _quiet(said: StringIO | None = None) -> Iterator[None]:
    said = StringIO() if said is None else said
    with warnings.catch_warnings(), redirect_stdout(said), redirect_stderr(said):
        warnings.simplefilter("ignore")
        yield


assert len(byte_tokenizer()) <= VOCABULARY
