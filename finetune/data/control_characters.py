"""Which characters are no text?"""

import re

# Unicode's category Cc but tab, newline and carriage return.
CONTROL_CHARACTER = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
NAMES = (  # of the first 32, in their order (ECMA-48)
    *("NUL", "SOH", "STX", "ETX", "EOT", "ENQ", "ACK", "BEL", "BS", "HT", "LF", "VT", "FF", "CR", "SO", "SI"),
    *("DLE", "DC1", "DC2", "DC3", "DC4", "NAK", "SYN", "ETB", "CAN", "EM", "SUB", "ESC", "FS", "GS", "RS", "US"),
)


def name_character(character: str) -> str:
    """The character's number in Unicode and, where it has one, its usual short name: `U+0000 (NUL)`."""
    code = ord(character)
    name = f" ({NAMES[code]})" if code < len(NAMES) else ""
    return f"U+{code:04X}{name}"


def replace_control_characters(text: str) -> str:
    """The text with a space for each control character, so that no words are joined."""
    return CONTROL_CHARACTER.sub(" ", text)
