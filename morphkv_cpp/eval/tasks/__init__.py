"""Tasks made by code, from texts that every installation has: a family a file. Nothing is downloaded."""

from . import chats, copies, facts, needles, reading, words
from .shape import Item, Question, Task, Tokens

TASKS: dict[str, Task] = {
    task.name: task for family in (reading, copies, facts, needles, words, chats) for task in family.TASKS
}

__all__ = ["TASKS", "Item", "Question", "Task", "Tokens", "chosen"]


def chosen(text: str) -> list[Task]:
    """Tasks by their names or the first words of them, separated by commas; `all` is all."""
    found: dict[str, Task] = {}
    for part in (part.strip() for part in text.split(",")):
        names = [name for name in TASKS if part in ("all", name) or name.startswith(f"{part}-")]
        if not names:
            raise ValueError(f"tasks must be all or some of {', '.join(TASKS)}, got {part!r}")
        found.update({name: TASKS[name] for name in names})
    return list(found.values())
