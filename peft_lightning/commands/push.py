"""``python -m peft_lightning push``: upload an adapter or a merged model to the model hub."""

from __future__ import annotations

import shutil
from pathlib import Path

from peft_lightning.messages import UserError


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
    message: str = "Upload by peft_lightning",
    dry_run: bool = False,
) -> None:
    """Upload an adapter or a merged model to a repository on the model hub, with a model card.

    The token is read from HF_TOKEN, or is that of ``hf auth login``. A README.md in the folder is
    uploaded as it is; without, the model card of the command card is.

    Args:
        ckpt_path: Folder of an adapter, a checkpoint or a merged model.
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

    from peft_lightning.cli.model_card import model_card
    from peft_lightning.export.merged_from import FILE as MERGED_FROM
    from peft_lightning.export.unverified import UNVERIFIED
    from peft_lightning.files import (
        CARD_FILE,
        SUMS_FILE,
        existing_folder,
        require_undamaged,
        sealed_folder,
    )
    from peft_lightning.hub import name_base, push_folder, uploaded_files

    folder = existing_folder(ckpt_path)
    require_undamaged(folder)
    if (mark := folder / UNVERIFIED).is_file():
        reason = mark.read_text(encoding="utf-8").partition("\n")[0]
        raise UserError(f"{folder} is not to be used: {reason}; merge the adapter again")
    inside = sorted(p for p in folder.iterdir() if p.name not in (SUMS_FILE, MERGED_FROM))
    wanted = uploaded_files(folder, trainer_state)
    with tempfile.TemporaryDirectory() as temporary:
        upload = Path(temporary, "upload")
        with sealed_folder(upload) as copy:
            for path in wanted:
                if path.name != CARD_FILE:
                    shutil.copyfile(path, copy / path.name)
            name_base(copy, base_model)
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
