"""What does an error of Hydra's mean in the user's terms?"""

import re

from hydra.errors import MissingConfigException
from yaml import MarkedYAMLError

from finetune.cli.overrides import suggest_setting
from finetune.errors import UserError, did_you_mean, suggest_and_list


def explain_error(error: Exception) -> str:
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
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={option}: there is no such option.{suggest_and_list(option, error.options, f'{group}=')}"
    if key is None:
        return where + " ".join(text.split())
    if re.search(r"Key '.*' not in|is not in struct", text):
        last = key[1].rpartition(".")[2]
        meant = suggest_setting(key[1])
        beside = getattr(error.__cause__ or error, "parent_node", None) or ()
        near = f" Did you mean {meant}?" if meant else did_you_mean(last, map(str, beside), key[1].removesuffix(last))
        return f"{where}{key[1]}: there is no such setting.{near}"
    boilerplate = re.compile(r"\s+\w+(: |=)|In '|To append")
    lines = [line for line in text.splitlines() if line.strip() and not boilerplate.match(line)]
    return f"{where}{key[1]}: {' '.join(lines)}."
