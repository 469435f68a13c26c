"""Arrow IPC files with one record batch whose buffers all start at multiples of 64 bytes.

Arrow's own writer aligns buffers to 8 bytes and offers no setting in Python. The file it writes is laid out again
here: the positions in its FlatBuffers metadata are fixed-size integers and are set in place, so any Arrow reader
opens the result.
"""

import struct

import pyarrow as pa

ALIGNMENT = 64

_MAGIC = b"ARROW1"
_CONTINUATION = 0xFFFFFFFF
_END_OF_STREAM = struct.pack("<II", _CONTINUATION, 0)
# Positions of fields in Arrow's FlatBuffers tables (format/Message.fbs, format/File.fbs).
_MESSAGE_HEADER, _MESSAGE_BODY_LENGTH = 2, 3
_BATCH_BUFFERS = 2
_FOOTER_BATCHES = 3
_FRAME = 1 << 12
"""More than an IPC file has besides its record batch and the schema, which is in it twice."""


def encode(batch: pa.RecordBatch) -> pa.Buffer:
    """The bytes of an IPC file that holds ``batch``, uncompressed, every buffer aligned to 64 bytes."""
    # Buffers of their size from the start: a stream that grows copies what it has, time and again.
    schema_size = batch.schema.serialize().size
    room = pa.allocate_buffer(pa.ipc.get_record_batch_size(batch) + 2 * schema_size + _FRAME)
    sink = pa.FixedSizeBufferWriter(room)
    options = pa.ipc.IpcWriteOptions(use_threads=False)
    with pa.ipc.new_file(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    packed = memoryview(room)[: sink.tell()]
    footer_size = struct.unpack_from("<i", packed, len(packed) - 10)[0]
    footer = bytearray(packed[len(packed) - 10 - footer_size : len(packed) - 10])
    block = _vector(footer, _root(footer), _FOOTER_BATCHES) + 4
    offset, metadata_size, _, body_size = struct.unpack_from("<qiiq", footer, block)
    metadata = bytearray(packed[offset + 8 : offset + metadata_size])
    body = packed[offset + metadata_size : offset + metadata_size + body_size]

    pieces, new_body_size = _realign(metadata, body)
    padding = -(offset + 8 + len(metadata)) % ALIGNMENT
    metadata += bytes(padding)
    struct.pack_into("<qiiq", footer, block, offset, 8 + len(metadata), 0, new_body_size)
    head = struct.pack("<Ii", _CONTINUATION, len(metadata)) + metadata
    tail = _END_OF_STREAM + footer + struct.pack("<i", len(footer)) + _MAGIC
    file = pa.allocate_buffer(offset + len(head) + new_body_size + len(tail))
    out = pa.FixedSizeBufferWriter(file)
    out.write(packed[:offset])
    out.write(head)
    for piece, pad in pieces:
        out.write(piece)
        out.write(bytes(pad))
    out.write(tail)
    return file


def decode(buffer: pa.Buffer) -> pa.RecordBatch:
    """The record batch of an IPC file, without a copy.

    Raises:
        pa.ArrowInvalid: not an IPC file, or one with another number of record batches.
    """
    reader = pa.ipc.open_file(buffer)
    if reader.num_record_batches != 1:
        raise pa.ArrowInvalid(f"{reader.num_record_batches} record batches where there should be one")
    return reader.get_batch(0)


def _realign(metadata: bytearray, body: memoryview) -> tuple[list[tuple[memoryview, int]], int]:
    """Moves every buffer of the body to a multiple of 64 and updates the metadata in place."""
    message = _root(metadata)
    vector = _vector(metadata, _table(metadata, message, _MESSAGE_HEADER), _BATCH_BUFFERS)
    pieces = []
    position = 0
    for index in range(struct.unpack_from("<i", metadata, vector)[0]):
        at = vector + 4 + 16 * index
        offset, size = struct.unpack_from("<qq", metadata, at)
        struct.pack_into("<qq", metadata, at, position, size)
        pad = -size % ALIGNMENT
        pieces.append((body[offset : offset + size], pad))
        position += size + pad
    length_at = _field(metadata, message, _MESSAGE_BODY_LENGTH)
    if length_at is not None:
        struct.pack_into("<q", metadata, length_at, position)
    return pieces, position


def _root(data: bytearray) -> int:
    return int(struct.unpack_from("<I", data, 0)[0])


def _field(data: bytearray, table: int, index: int) -> int | None:
    """Where a table's field lies; None when it is left out because it has its default."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    if 4 + 2 * index >= struct.unpack_from("<H", data, vtable)[0]:
        return None
    offset = struct.unpack_from("<H", data, vtable + 4 + 2 * index)[0]
    return table + offset if offset else None


def _table(data: bytearray, table: int, index: int) -> int:
    at = _field(data, table, index)
    if at is None:
        raise pa.ArrowInvalid(f"Arrow metadata lacks field {index}")
    return int(at + struct.unpack_from("<I", data, at)[0])


_vector = _table
