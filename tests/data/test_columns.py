import ast
import json
import re
from pathlib import Path

import pytest
import yaml

import data_recipes
from data_recipes import alpaca, messages, prompt_completion, sharegpt, text, usaddress, usaddress_zip

USER = {"role": "user", "content": "Hi"}
CHECKOUT = Path(__file__).parents[2]


def crossing(*labels):
    return {"address": " ".join(token for _, token in labels), "labels": [list(pair) for pair in labels]}


def test_every_recipe_shows_an_example_row_that_has_its_columns():
    for recipe in (alpaca, messages, prompt_completion, sharegpt, text, usaddress, usaddress_zip):
        example = re.search(r"^(\{.*\})$", recipe.__doc__, re.MULTILINE)[1]
        assert ast.literal_eval(example.replace("...]", "[]]")).keys() >= recipe.COLUMNS.keys()


def test_every_recipe_says_what_it_is():
    for file in Path(data_recipes.__path__[0]).glob("[a-z]*.py"):
        assert ast.get_docstring(ast.parse(file.read_text()))


def test_prompt_completion_is_one_question_and_its_answer():
    assert prompt_completion.read({"prompt": "Hi", "completion": "Hello"}) == ([USER], "Hello")


def test_text_has_no_prompt():
    assert text.read({"text": "Once"}) == ([], "Once")


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"instruction": "Say", "output": "x"}, "Say"),
        ({"instruction": "Say", "input": "", "output": "x"}, "Say"),
        ({"instruction": "Say", "input": "that", "output": "x"}, "Say\n\nthat"),
    ],
)
def test_alpaca_joins_instruction_and_input(row, prompt):
    assert alpaca.read(row) == ([{"role": "user", "content": prompt}], "x")


def test_messages_learns_the_last_answer():
    turns = [{"role": "system", "content": "Be kind"}, USER, {"role": "assistant", "content": "Hello"}]
    assert messages.read({"messages": turns}) == (turns[:2], "Hello")


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([], "0 messages, expected at least"),
        ([{"role": "assistant", "content": "x"}], "1 messages, expected at least"),
        ([USER, USER], "the last message is the user's"),
        ([USER, {"role": "bot", "content": "x"}], "message 2 has the role 'bot'"),
        ([USER, {"role": "assistant", "content": None}], "message 2 has content that is not text: None"),
        ([USER, "Hello"], "message 2 is not an object with role and content"),
        ([{"role": "user"}, USER], "message 1 is not an object with role and content"),
    ],
)
def test_messages_that_are_wrong_have_a_reason(turns, reason):
    with pytest.raises(ValueError, match=reason):
        messages.read({"messages": turns})


def test_sharegpt_is_messages_under_other_names():
    turns = [
        {"from": "system", "value": "Be kind"},
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Hello"},
    ]
    assert sharegpt.read({"conversations": turns}) == ([{"role": "system", "content": "Be kind"}, USER], "Hello")


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        ({"from": "bard", "value": "x"}, "turn 2 is from 'bard', expected one of system, human, gpt"),
        ({"role": "assistant", "content": "x"}, "turn 2 is not an object with from and value"),
        ({"from": "human", "value": "x"}, "the last message is the user's"),
    ],
)
def test_sharegpt_turns_that_are_wrong_have_a_reason(turn, reason):
    with pytest.raises(ValueError, match=reason):
        sharegpt.read({"conversations": [{"from": "human", "value": "Hi"}, turn]})


def test_an_address_becomes_json_in_the_order_of_the_text():
    row = crossing(
        ("Recipient", "ACME"), ("Recipient", "CO.,"), ("Recipient", "INC.,"), ("AddressNumber", "123"),
        ("AddressNumberSuffix", "1/2"), ("StreetNamePreModifier", "Old"), ("StreetName", "Main"),
        ("StreetNamePostType", "St.,"), ("PlaceName", "New"), ("PlaceName", "York;"), ("ZipCode", "10001"),
    )  # fmt: skip
    prompt, completion = usaddress.read({**row, "address": "  ACME CO., INC.,\n123 1/2 "})
    assert prompt == [{"role": "user", "content": "ACME CO., INC., 123 1/2"}]
    assert completion == (
        '{"recipient":"ACME CO., INC.","number":"123 1/2","street":"Old Main","type":"St.",'
        '"city":"New York","zip":"10001"}'
    )


def test_words_of_one_part_that_stand_apart_are_joined():
    row = crossing(("OccupancyIdentifier", "2nd,"), ("OccupancyType", "Floor"), ("OccupancyIdentifier", "B"))
    assert json.loads(usaddress.read(row)[1]) == {"unit": "2nd B", "unit_type": "Floor"}


def test_the_second_street_of_a_crossing_has_keys_of_its_own():
    row = crossing(
        ("StreetName", "79th"), ("StreetNamePostType", "St."), ("IntersectionSeparator", "&"),
        ("StreetNamePreDirectional", "E"), ("StreetName", "Joliet"), ("StreetNamePostType", "Rd.,"),
        ("PlaceName", "Chicago"),
    )  # fmt: skip
    assert json.loads(usaddress.read(row)[1]) == {
        "street": "79th", "type": "St.", "and": "&", "predir2": "E", "street2": "Joliet", "type2": "Rd.",
        "city": "Chicago",
    }  # fmt: skip
    assert usaddress.group(row) == "79th"


def test_addresses_are_grouped_by_street_without_case_and_punctuation():
    one = crossing(("AddressNumber", "1"), ("StreetName", "St."), ("StreetName", "John's,"))
    other = crossing(("AddressNumber", "2"), ("StreetName", "ST"), ("StreetName", "JOHNS"))
    assert usaddress.group(one) == usaddress.group(other) == "stjohns"
    assert usaddress.group(crossing(("USPSBoxType", "PO Box"), ("USPSBoxID", "7"))) == "pobox7"


def test_an_unknown_label_is_not_dropped():
    with pytest.raises(ValueError, match="'Planet' is none of the 29"):
        usaddress.read(crossing(("Planet", "Mars")))


def test_the_prompt_names_every_key_of_the_address_recipe():
    system = yaml.safe_load((CHECKOUT / "conf/data/usaddress.yaml").read_text())["system"]
    assert len(usaddress.KEYS) == 29
    assert set(usaddress.KEYS.values()) <= set(re.findall(r"\w+", system))


def test_the_zip_code_of_an_address_is_copied_from_its_city_state_and_code():
    row = crossing(
        ("StreetName", "Elm"),
        ("PlaceName", "Seguin,"),
        ("StateName", "TX"),
        ("ZipCode", "78155-2725"),
        ("OccupancyIdentifier", "4"),
    )
    assert usaddress_zip.read(row) == ([USER | {"content": "city: Seguin\nstate: TX\nzip: 78155"}], "78155")
    assert usaddress_zip.group(row) == "78155"


@pytest.mark.parametrize("labels", [[("StreetName", "Elm")], [("ZipCode", "7815")], [("ZipCode", "781550")]])
def test_an_address_without_five_digits_has_no_zip_code(labels):
    with pytest.raises(ValueError, match="no ZIP code"):
        usaddress_zip.read(crossing(*labels))
