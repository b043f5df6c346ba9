"""How is a value spelled on the command line?"""

from enum import Enum

from hydra.core.override_parser.types import Quote, QuotedString


def spell(value: object) -> str:
    """A value as it is written on the command line."""
    match value:
        case Enum():
            return str(value.value)
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case list():
            return f"[{','.join(map(spell, value))}]"
        case dict():
            return f"{{{','.join(f'{key}:{spell(item)}' for key, item in value.items())}}}"
    return str(value)


def spell_quoted(value: object) -> str:
    """A value for an override, in which a text stays one, even if it reads as a number: `'1e3'`."""
    return QuotedString(value, Quote.single).with_quotes() if isinstance(value, str) else spell(value)
