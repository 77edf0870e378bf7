"""TensorFlow's checkpoint format ("tensor bundle"), read without TensorFlow.

A checkpoint is an index and one or more data files.  The index is a sorted string table (LevelDB's format): blocks of
key-value pairs, an index block that tells where the blocks lie, and a footer that tells where the index block lies.
A value is a protocol buffer that gives a tensor's type, shape and place in the data file.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

_FOOTER_BYTES = 48
_MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
_FLOAT32 = 1
_TYPE, _SHAPE, _OFFSET, _SIZE = 1, 2, 4, 5  # fields of a BundleEntryProto


def read_checkpoint(index: Path, data: Path) -> dict[str, np.ndarray]:
    """All float32 tensors of a checkpoint with one data file, by name.  Raise ValueError when the index is no table."""
    table, store = index.read_bytes(), data.read_bytes()
    entries = ((key.decode(), dict(_fields(value))) for key, value in read_table(table) if key)
    return {name: _tensor(entry, store) for name, entry in entries if entry.get(_TYPE) == _FLOAT32}


def _tensor(entry: dict[int, int | bytes], store: bytes) -> np.ndarray:
    start, size = _integer(entry, _OFFSET), _integer(entry, _SIZE)
    dimensions = [dict(_fields(_bytes(value))) for _, value in _fields(_bytes(entry.get(_SHAPE, b"")))]
    shape = [_integer(dimension, 1) for dimension in dimensions]
    return np.frombuffer(store[start : start + size], "<f4").reshape(shape).copy()


def read_table(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a sorted string table."""
    if len(table) < _FOOTER_BYTES or table[-8:] != _MAGIC:
        raise ValueError("This is no sorted string table: its last eight bytes are not the format's mark.")
    footer = table[-_FOOTER_BYTES:]
    _, _, place = _handle(footer, 0)
    offset, size, _ = _handle(footer, place)
    for _, handle in _block(table, offset, size):
        yield from _block(table, *_handle(handle, 0)[:2])


def _handle(data: bytes, place: int) -> tuple[int, int, int]:
    """(offset, size) of a block, and where the next thing starts."""
    offset, place = _varint(data, place)
    size, place = _varint(data, place)
    return offset, size, place


def _block(table: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Pairs of one block; each key leaves out what it shares with the key before it."""
    if table[offset + size] != 0:
        raise ValueError("The table is compressed, which checkpoints never are.")
    block = table[offset : offset + size]
    restarts = struct.unpack("<I", block[-4:])[0]
    end, place, key = size - 4 - 4 * restarts, 0, b""
    while place < end:
        shared, place = _varint(block, place)
        own, place = _varint(block, place)
        length, place = _varint(block, place)
        key = key[:shared] + block[place : place + own]
        place += own
        yield key, block[place : place + length]
        place += length


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Fields of a protocol buffer: their numbers, and integers or bytes."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        kind = tag & 7
        if kind == 0:
            number, place = _varint(message, place)
            yield tag >> 3, number
            continue
        length = {1: 8, 5: 4}.get(kind)
        if length is None:
            length, place = _varint(message, place)
        yield tag >> 3, message[place : place + length]
        place += length


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A number in base 128, least significant digit first, and where the next thing starts."""
    number = shift = 0
    while True:
        digit = data[place]
        place, number, shift = place + 1, number | (digit & 127) << shift, shift + 7
        if digit < 128:
            return number, place


def _integer(entry: dict[int, int | bytes], field: int) -> int:
    value = entry.get(field, 0)
    assert isinstance(value, int)
    return value


def _bytes(value: int | bytes) -> bytes:
    assert isinstance(value, bytes)
    return value
