"""Whether the model hub can be reached."""

from __future__ import annotations

from functools import cache


@cache
def hub_answers() -> bool:
    """Whether the model hub can be reached: asked once, as its clients would retry for a minute."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # whatever the HTTP client of this release raises
        return False
    return True
