"""What does an error of Hydra's mean in the user's terms?"""

import re

from yaml import MarkedYAMLError

from finetune import overrides
from finetune.schema import UserError


def explain(error: Exception) -> str:
    """The file, the setting, why it is wrong and what to write instead, in one paragraph."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}:{mark.line + 1}: this is no YAML: {error.problem}. Compare it with the files beside it."
    text = f"{error}\n{error.__cause__ or ''}"
    file = re.search(r"In '(\S+)': \w+ raised while composing", text)
    key = re.search(r"full_key: (\S+)", text)
    where = f"{file[1]}.yaml: " if file else ""
    if key is None:
        return where + " ".join(text.split())
    if re.search(r"Key '.*' not in|is not in struct", text):
        meant = overrides.meant(key[1])
        return f"{where}{key[1]}: there is no such setting.{f' Did you mean {meant}?' if meant else ''}"
    boilerplate = re.compile(r"\s+\w+(: |=)|In '|To append")
    lines = [line for line in text.splitlines() if line.strip() and not boilerplate.match(line)]
    return f"{where}{key[1]}: {' '.join(lines)}."
