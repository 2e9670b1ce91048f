"""Rewards with TRL's signature: one value a row, `None` where the reward does not apply."""

Completion = str | list[dict[str, str]]


def text(completion: Completion) -> str:
    """Return the response of one completion as plain text.

    A completion is either the text itself (plain prompts) or a list of chat messages
    (conversational prompts). Of several messages the contents of the assistant's are joined by a
    newline, so that tool results and the like earn nothing.

    Raises TypeError if a message's content is not a string.
    """
    if isinstance(completion, str):
        return completion
    return "\n".join(m["content"] for m in completion if m["role"] == "assistant")
