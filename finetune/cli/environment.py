"""Which variables of the environment do the settings read, so that their values are hidden?"""

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from enum import EnumMeta

from finetune.config import schema
from finetune.secrets import note_variables

READS = re.compile(r"\boc\.env:\s*([^\s,}'\"$]+)")
# The last part of keys whose values name a folder, a recipe or a metric, by which a run is found and read again.
NAMES = ("name", "recipe", "metrics")


def note_variables_read(settings: Mapping[str, object]) -> None:
    """Have hidden what the settings, by their dotted keys, read by `${oc.env:NAME}`.

    Not hidden are numbers, words of the schema such as `offline`, and the values of the settings in NAMES and of those
    without a section, such as `output_dir`.
    """
    texts = [str(value) for key, value in settings.items() if "." in key and key.rpartition(".")[2] not in NAMES]
    read = {name for text in texts for name in READS.findall(text)}
    note_variables(name for name in read if not _is_plain(os.environ.get(name, "")))


def settings_of(arguments: Iterable[str]) -> dict[str, str]:
    """The settings on a command line by their keys, as they are written."""
    pairs = (text.lstrip("+").partition("=") for text in arguments)
    return {key: value for key, _, value in pairs}


def _is_plain(value: str) -> bool:
    """Whether the value is a number or a word of the schema."""
    with suppress(ValueError):
        return isinstance(float(value), float)
    return value in {name for kind in vars(schema).values() if isinstance(kind, EnumMeta) for name in kind.__members__}
