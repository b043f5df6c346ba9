"""A US address whose words are labelled -> its ZIP code, to be copied from the city, state and ZIP code.

{"address": "Seguin, TX 78155", "labels": [["PlaceName", "Seguin,"], ["StateName", "TX"], ["ZipCode", "78155"]]}

So easy a task that a model which is shown a few examples needs no tuning. Only the five digits are kept.
"""

import re
from typing import Any

from data_recipes import usaddress

METRICS = ["exact_match"]
COLUMNS = usaddress.COLUMNS


def read(row: dict[str, Any]) -> tuple[list[dict[str, str]], str]:
    """City, state and ZIP code, one a line, and the five digits."""
    parts = usaddress.split(row["labels"])
    parts["zip"] = group(row)
    prompt = "\n".join(f"{key}: {parts[key]}" for key in ("city", "state", "zip") if key in parts)
    return [{"role": "user", "content": prompt}], parts["zip"]


def group(row: dict[str, Any]) -> str:
    """The five digits, so that no code is both trained on and asked for."""
    digits = re.match(r"\d{5}(?!\d)", usaddress.split(row["labels"]).get("zip", ""))
    if not digits:
        raise ValueError("there is no ZIP code among the labels")
    return digits.group()
