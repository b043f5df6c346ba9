"""A conversation in the form of ShareGPT; the last answer is learnt, all before it is the prompt.

{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]}
"""

from typing import Any

from data_recipes import messages

METRICS = ["chrf", "exact_match"]
COLUMNS = {"conversations": list}
ROLES = {"system": "system", "human": "user", "gpt": "assistant"}


def read(row: dict[str, Any]) -> tuple[list[dict[str, str]], str]:
    """All turns but the last as prompt, and the last, which must be gpt's, as completion."""
    turns = [_rename(turn, number) for number, turn in enumerate(row["conversations"], start=1)]
    return messages.read({"messages": turns})


def _rename(turn: Any, number: int) -> dict[str, Any]:
    if not isinstance(turn, dict) or not {"from", "value"} <= turn.keys():
        raise ValueError(f"turn {number} is not an object with from and value")
    if turn["from"] not in list(ROLES):  # it may be a list, which no dictionary can look up
        raise ValueError(f"turn {number} is from {turn['from']!r}, expected one of {', '.join(ROLES)}")
    return {"role": ROLES[turn["from"]], "content": turn["value"]}
