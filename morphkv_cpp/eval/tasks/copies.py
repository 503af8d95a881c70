"""A passage of long ago is copied word for word; each token follows the passage's own."""

from ..copying import build_document
from .shape import Item, Question, Task, Tokens

# kind of text and tokens of the passage
PASSAGES = (("prose", 140), ("code", 140), ("table", 140), ("prose", 512), ("code", 512))


def make(tokens_of: Tokens, i_item: int, n_tokens: int) -> Item:
    kind, n_passage = PASSAGES[i_item % len(PASSAGES)]
    document = build_document(tokens_of.llm, kind, i_item // len(PASSAGES), n_passage, n_tokens)
    question = Question(document.question, n_answer=len(document.passage), forced=tuple(document.passage))
    return Item(f"{kind}-{n_passage}", document.tokens, (question,))


def score(question: Question, said: str) -> float:
    """said: a digit a token, 1 where it is what the model would have written."""
    return said.count("1") / len(said)


TASKS = [Task("copy", "a passage, so many tokens later, word for word (right tokens, teacher-forced)", make, score)]
