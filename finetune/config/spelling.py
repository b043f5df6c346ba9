"""How is a value spelled on the command line?"""

import json
from enum import Enum
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString


def spell(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, Enum):
        return str(value.value)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(spell, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{spell(item)}' for key, item in value.items())}}}"
    return str(value)


def spell_plain(value: Any) -> str:
    """A setting's value as on the command line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def spell_quoted(value: Any) -> str:
    """A value for an override, in which a text stays one, even if it reads as a number: `'1e3'`."""
    return QuotedString(value, Quote.single).with_quotes() if isinstance(value, str) else spell(value)
