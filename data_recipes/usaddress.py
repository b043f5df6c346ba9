"""A US address whose words are labelled -> a JSON object of its parts.

{"address": "8128 Elm Drive", "labels": [["AddressNumber", "8128"], ["StreetName", "Elm"], ...]}

All 29 labels of usaddress become 24 short keys; a prefix, suffix or modifier joins the part that it belongs to. Where
two streets cross, the keys of the second end in 2.
"""

import json
import re
from itertools import groupby
from typing import Any

METRICS = ["field_f1", "exact_match", "valid_json"]
COLUMNS = {"address": str, "labels": list}

KEYS = {
    "Recipient": "recipient",
    "BuildingName": "building",
    "LandmarkName": "landmark",
    "AddressNumberPrefix": "number",
    "AddressNumber": "number",
    "AddressNumberSuffix": "number",
    "StreetNamePreDirectional": "predir",
    "StreetNamePreType": "pretype",
    "StreetNamePreModifier": "street",
    "StreetName": "street",
    "StreetNamePostModifier": "street",
    "StreetNamePostType": "type",
    "StreetNamePostDirectional": "postdir",
    "OccupancyType": "unit_type",
    "OccupancyIdentifier": "unit",
    "SubaddressType": "sub_type",
    "SubaddressIdentifier": "sub",
    "USPSBoxType": "box_type",
    "USPSBoxID": "box",
    "USPSBoxGroupType": "route_type",
    "USPSBoxGroupID": "route",
    "PlaceName": "city",
    "StateName": "state",
    "ZipCode": "zip",
    "ZipPlus4": "zip",
    "CountryName": "country",
    "CornerOf": "corner",
    "IntersectionSeparator": "and",
    "NotAddress": "other",
}
OF_A_STREET = {"number", "predir", "pretype", "street", "type", "postdir"}


def read(row: dict[str, Any]) -> tuple[list[dict[str, str]], str]:
    """The address as people write it, and its parts as one line of JSON in the order of the text.

    No space follows a comma or colon: that is a fifth of the tokens, and so of the time, of an answer.
    """
    address = " ".join(row["address"].split())
    parts = json.dumps(split(row["labels"]), ensure_ascii=False, separators=(",", ":"))
    return [{"role": "user", "content": address}], parts


def group(row: dict[str, Any]) -> str:
    """The street's name, or the whole address where it has none, without case and punctuation."""
    return re.sub(r"[\W_]", "", split(row["labels"]).get("street", row["address"]).lower())


def split(labels: list[Any]) -> dict[str, str]:
    """Key -> its words in the order of the text; commas and semicolons stay only inside a run of words."""
    crossing = False
    tokens = []
    for pair in labels:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise ValueError(f"{pair!r:.60} among the labels is not a list of a label and its words")
        label, token = pair
        if label not in KEYS:
            raise ValueError(f"the label {label!r} is none of the 29 that this recipe knows")
        key = KEYS[label]
        tokens.append((f"{key}2" if crossing and key in OF_A_STREET else key, token))
        crossing = crossing or key == "and"
    parts: dict[str, str] = {}
    for key, run in groupby(tokens, key=lambda pair: pair[0]):
        words = " ".join(token for _, token in run).rstrip(" ,;")
        parts[key] = f"{parts[key]} {words}" if key in parts else words
    return parts
