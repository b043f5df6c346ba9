"""Which tasks of lm-evaluation-harness are asked for, and what do they need?"""

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

# A task file that reads files of this machine.
LOCAL_DATA = re.compile(r"^dataset_path:\s*['\"]?(arrow|csv|json|parquet|text)\b", re.MULTILINE)


def harness_task_problems(tasks: list[str]) -> Iterator[str]:
    """What is wrong with `eval.harness_tasks`, but for names that only the harness can know."""
    if tasks and find_spec("lm_eval") is None:
        yield (
            f"eval.harness_tasks=[{','.join(tasks)}]: EleutherAI's lm-evaluation-harness is not installed. "
            "Install it with: pip install -c constraints.txt -e '.[harness]'"
        )
    for task in sorted(set(tasks)):
        if tasks.count(task) > 1:
            yield f"eval.harness_tasks: {task} is named more than once."
        if is_task_path(task) and not task_files(task):
            yield f"eval.harness_tasks: {task}: there is no such .yaml file, or folder of such files."


def is_task_path(task: str) -> bool:
    """Whether a task is given as a file or folder, not by a name that the harness knows."""
    return "/" in task or task.endswith((".yaml", ".yml"))


def task_files(path: str) -> list[Path]:
    """The task files at a path."""
    given = Path(path).expanduser()
    return [given] if given.is_file() else sorted(given.glob("**/*.yaml"))


def tasks_need_hub(tasks: list[str]) -> bool:
    """Whether a task may read data of the Hugging Face hub."""
    texts = (file.read_text(encoding="utf-8") for task in tasks for file in task_files(task))
    return not all(map(is_task_path, tasks)) or not all(map(LOCAL_DATA.search, texts))
