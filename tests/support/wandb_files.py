"""What lies in the files of an offline run of W&B."""

import json
import struct


def read_records(folder):
    """The records of a run's one .wandb file, which is a LevelDB log after a header of seven bytes."""
    from wandb import teardown
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # protobuf makes it on import

    teardown()  # its service process may still be writing
    [file] = folder.glob("wandb/*/*.wandb")
    content, position, parts, records = file.read_bytes(), 7, b"", []
    while position + 7 <= len(content):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        _, size, kind = struct.unpack_from("<IHB", content, position)
        parts += content[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            records.append(Record.FromString(parts))
            parts = b""
    return records


def read(records, kind):
    return [getattr(record, kind) for record in records if record.WhichOneof("record_type") == kind]


def values(items):
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
