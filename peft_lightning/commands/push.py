"""``python -m peft_lightning push``: upload an adapter to the model hub."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from peft_lightning.messages import UserError

TOKENIZER = r"tokenizer.*\.(json|model)|special_tokens_map\.json|added_tokens\.json|vocab\..*"
ADAPTER = r"adapter_config\.json|adapter_model\.safetensors|peft_lightning\.json|README\.md"
MODEL = r"config\.json|generation_config\.json|model.*\.safetensors(\.index\.json)?"
OURS = re.compile(rf"{ADAPTER}|{MODEL}|{TOKENIZER}|merges\.txt|chat_template\.jinja|LICEN[SC]E.*")
STATE = "trainer_state.pt"


def push(
    ckpt_path: str,
    repo: str,
    /,
    *,
    base_model: str | None = None,
    license: str | None = None,
    private: bool = False,
    revision: str | None = None,
    trainer_state: bool = False,
    message: str = "Upload adapter",
    dry_run: bool = False,
) -> None:
    """Upload an adapter to a repository on the model hub, with a model card.

    The token is read from HF_TOKEN, or is that of ``hf auth login``. A README.md in the folder is
    uploaded as it is; without, the model card of the command card is.

    Args:
        ckpt_path: Folder of an adapter or checkpoint.
        repo: OWNER/NAME; created if it does not exist.
        base_model: Hub id of the base model, by which others find it; required if the adapter was
            trained on a local folder.
        license: Identifier of the license for the model card, such as apache-2.0.
        private: Whether only those you allow may see the repository.
        revision: Branch to upload to; created if it does not exist.
        trainer_state: Also upload what an exact resume needs: optimizer state, random state and
            names of the data files.
        message: Message of the commit.
        dry_run: List the files that would be uploaded, and upload nothing.
    """
    import tempfile

    from peft_lightning.commands.card import CARD_FILE, model_card
    from peft_lightning.files import (
        SUMS_FILE,
        existing_folder,
        require_undamaged,
        sealed_folder,
    )
    from peft_lightning.hub import push_folder

    folder = existing_folder(ckpt_path)
    require_undamaged(folder)
    inside = sorted(path for path in folder.iterdir() if path.name != SUMS_FILE)
    wanted = [p for p in inside if OURS.fullmatch(p.name) or (trainer_state and p.name == STATE)]
    for path in wanted:
        if (target := path.resolve()).parent != folder.resolve():
            raise UserError(
                f"{path} leads out of its folder, to {target}: put the file itself there"
            )
    with tempfile.TemporaryDirectory() as temporary:
        upload = Path(temporary, "upload")
        with sealed_folder(upload) as copy:
            for path in wanted:
                if path.name != CARD_FILE:
                    shutil.copyfile(path, copy / path.name)
            _name_base(copy, base_model)
        card = upload / CARD_FILE  # without a checksum, as it may be edited later
        if (folder / CARD_FILE).is_file():
            shutil.copyfile(folder / CARD_FILE, card)
        else:
            card.write_text(model_card(folder, base_model, license, repo), encoding="utf-8")
        for path in sorted(upload.iterdir()):
            print(f"{path.stat().st_size:>14,}  {path.name}")
        if left := [path.name for path in inside if path not in wanted]:
            print(f"not uploaded: {', '.join(left)}")
        if dry_run:
            print(f"nothing was uploaded to {repo}: dry_run")
            return
        print(f"pushed: {push_folder(upload, repo, private, revision, message)}")


def _name_base(folder: Path, base_model: str | None) -> None:
    """Replace a local base model in the adapter's files by its hub id.

    Raises:
        UserError: If they name a local folder and no hub id was given.
    """
    for file, key in (
        ("adapter_config.json", "base_model_name_or_path"),
        ("adapter_config.json", "tokenizer_name_or_path"),
        ("peft_lightning.json", "base_model"),
    ):
        path = folder / file
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if not (name := content.get(key)):
            continue
        is_id = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name) and not Path(name).exists()
        if base_model is None and not is_id:
            raise UserError(
                f"the adapter's base is a local path, {name}, which nobody else has: give its hub "
                "id with --base_model"
            )
        content[key] = base_model or name
        path.write_text(json.dumps(content, indent=2, sort_keys=True), encoding="utf-8")
