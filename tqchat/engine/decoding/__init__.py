"""Generation of a reply's tokens, with or without proposals that are verified several at a time."""

from __future__ import annotations

import tqchat.engine.prepare_mlx  # noqa: F401

# isort: split

from tqchat.engine.decoding.decoder import Decoder as Decoder
from tqchat.engine.decoding.decoder import no_draft_reason as no_draft_reason
from tqchat.engine.decoding.draft_model import check_draft as check_draft
