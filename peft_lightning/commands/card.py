"""``python -m peft_lightning card``: the model card of an adapter, README.md in its folder."""

from __future__ import annotations


def card(
    ckpt_path: str,
    /,
    *,
    base_model: str | None = None,
    license: str | None = None,
    repo: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write a model card, README.md, into the folder of an adapter, checkpoint or merged model.

    It has the metadata that the hub asks for, code that asks the model, the adapter's options, and
    the numbers and the configuration of the run if the folder is in that of the run. Paths are cut
    to their last part; secrets are left out.

    Args:
        ckpt_path: Folder of an adapter, checkpoint or merged model.
        base_model: Hub id of the base model, if the adapter was trained on a local folder.
        license: Identifier of the license, such as apache-2.0; without, that which the card of a
            base in a local folder names.
        repo: OWNER/NAME of the adapter on the hub, for the examples.
        overwrite: Replace the card that this command wrote, unless it was edited.
    """
    from peft_lightning.cli.model_card import model_card
    from peft_lightning.files import (
        CARD,
        CARD_FILE,
        atomic_text,
        existing_folder,
        require_output,
        sealed_card,
    )

    folder = existing_folder(ckpt_path)
    require_output(folder / CARD_FILE, CARD, overwrite=overwrite)
    card = model_card(folder, base_model, license, repo)
    atomic_text(folder / CARD_FILE, sealed_card(card))
    print(f"{folder / CARD_FILE}")
