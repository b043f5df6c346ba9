"""An instruction, with or without something to work on.

{"instruction": "Translate to French.", "input": "Good morning", "output": "Bonjour"}
"""

from typing import Any

METRICS = ["chrf", "exact_match"]
COLUMNS = {"instruction": str, "output": str}
OPTIONAL = {"input": str}


def read(row: dict[str, Any]) -> tuple[list[dict[str, str]], str]:
    """Instruction and input, an empty line between them, as one user message, and the output."""
    parts = [row["instruction"], row.get("input", "")]
    return [{"role": "user", "content": "\n\n".join(part for part in parts if part)}], row["output"]
