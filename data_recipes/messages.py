"""A conversation in the form of chat APIs; the last answer is learnt, all before it is the prompt.

{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
"""

from typing import Any

METRICS = ["chrf", "exact_match"]
COLUMNS = {"messages": list}
ROLES = ("system", "user", "assistant")


def read(row: dict[str, Any]) -> tuple[list[dict[str, str]], str]:
    """All messages but the last as prompt, and the last, which must be the assistant's, as completion."""
    messages = [_check(message, number) for number, message in enumerate(row["messages"], start=1)]
    if len(messages) < 2:
        raise ValueError(f"{len(messages)} messages, expected at least a user's and an assistant's")
    if messages[-1]["role"] != "assistant":
        raise ValueError(f"the last message is the {messages[-1]['role']}'s, expected the assistant's")
    return messages[:-1], messages[-1]["content"]


def _check(message: Any, number: int) -> dict[str, str]:
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        raise ValueError(f"message {number} is not an object with role and content")
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise ValueError(f"message {number} has the role {role!r}, expected one of {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise ValueError(f"message {number} has content that is not text: {content!r:.60}")
    return {"role": role, "content": content}
