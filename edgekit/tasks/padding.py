"""The token that fills up the shorter texts of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.chat_template import special_tokens
from edgekit.errors import EdgekitError
from edgekit.schema import read_json

if TYPE_CHECKING:
    from edgekit.model import Model


def find_pad_id(model: Model) -> int:
    """The padding token's id from config.json, else the pad_token of tokenizer_config.json, else tokenizer.json's.

    A decoder without one is padded with the token that ends its texts: what is masked is not read. Raises EdgekitError where
    none of them names one.
    """
    token = special_tokens(model.folder).get("pad_token")
    padding = read_json(model.folder / "tokenizer.json").get("padding") or {}
    places = (
        lambda: model.config.get("pad_token_id"),
        lambda: model.tokenizer().token_to_id(token) if token else None,
        lambda: padding.get("pad_id"),
        lambda: next(iter(model.stops), None),
    )
    for place in places:
        found = place()
        # A padding token that was added without an embedding is in no text; any other one is as good, for it is masked.
        if isinstance(found, int) and 0 <= found < model.rows:
            return found
    raise EdgekitError(f"{model.folder / 'config.json'}: pad_token_id: missing; add the padding token's id")
