"""The pieces and scores in a SentencePiece model (tokenizer.model), read without its library.

A protocol buffer; the fields are those of https://github.com/google/sentencepiece, src/sentencepiece_model.proto, the encoding
is https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from edgekit.errors import EdgekitError

_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5
_PIECES, _PIECE, _SCORE = 1, 1, 2


def read_pieces(path: Path) -> list[tuple[str, float]]:
    """(piece, score) of every id; EdgekitError where the file is not a SentencePiece model."""
    try:
        data = path.read_bytes()
        pieces = [_piece(value) for field, value in _fields(data) if field == _PIECES]
    except (OSError, ValueError, struct.error) as bad:
        raise EdgekitError(f"{path}: not a SentencePiece model; fetch it again") from bad
    if not pieces:
        raise EdgekitError(f"{path}: a SentencePiece model without pieces; fetch it again")
    return pieces


def _piece(data: bytes) -> tuple[str, float]:
    text, score = "", 0.0
    for field, value in _fields(data):
        if field == _PIECE:
            text = value.decode("utf-8")
        elif field == _SCORE:
            (score,) = struct.unpack("<f", value)
    return text, score


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(number, bytes) of a message's fields, in their order; ValueError where they do not end where the message does."""
    offset = 0
    while offset < len(data):
        key, offset = _varint(data, offset)
        start, kind = offset, key & 7
        if kind == _VARINT:
            _, offset = _varint(data, offset)
        elif kind == _BYTES:
            length, start = _varint(data, offset)
            offset = start + length
        elif kind in {_FOUR, _EIGHT}:
            offset += 4 if kind == _FOUR else 8
        else:
            raise ValueError(f"wire type {kind}")
        if offset > len(data):
            raise ValueError("truncated")
        yield key >> 3, data[start:offset]


def _varint(data: bytes, offset: int) -> tuple[int, int]:
    value = shift = 0
    while offset < len(data) and shift < 64:
        byte = data[offset]
        value |= (byte & 0x7F) << shift
        offset, shift = offset + 1, shift + 7
        if byte < 0x80:
            return value, offset
    raise ValueError("truncated")
