"""Plain text to be continued: no prompt, and the whole text carries loss.

{"text": "Once upon a time ..."}
"""

from typing import Any

METRICS = ["perplexity"]
COLUMNS = {"text": str}


def read(row: dict[str, Any]) -> tuple[list[dict[str, str]], str]:
    """No prompt, and the text as completion."""
    return [], row["text"]
