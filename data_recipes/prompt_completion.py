"""A question and its answer.

{"prompt": "What is the capital of France?", "completion": "Paris"}
"""

from typing import Any

METRICS = ["chrf", "exact_match"]
COLUMNS = {"prompt": str, "completion": str}


def read(row: dict[str, Any]) -> tuple[list[dict[str, str]], str]:
    """The prompt as one user message, and the completion."""
    return [{"role": "user", "content": row["prompt"]}], row["completion"]
