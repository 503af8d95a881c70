"""A live text as it is now, for whoever changes it and may fail."""

from __future__ import annotations

import logging

from .. import bridge
from ..errors import SessionEndedError
from .live_text import LiveText

logger = logging.getLogger("morphkv_cpp")


class TextSnapshot:
    """To be put back whole. Without an archive, and for a text with images, bit for bit.

    Else what the text has lost by then is ahead once more: a copy of all that is archived would cost too much.
    """

    def __init__(self, text: LiveText):
        text.take()
        llm = text.llm
        self._begun, self._n_keep = text.begun, text.n_keep
        self._n_again, self._n_restored = text.n_again, text.n_restored
        self._ids, self._ahead = llm.input_ids[: text.n_held].copy(), text.ahead.copy()
        self._checkpoints = text.checkpoints.copy()
        self._state: bytes | None = None
        self._is_whole = False  # the state: with an archive's pages
        if text.begun and len(self._ids) > 0:
            self._is_whole = llm.archive is not None and bool((self._ids < 0).any())
            if llm.archive is None:
                self._state = bridge.checkpoint(llm.ctx)
            elif self._is_whole:
                self._state = bridge.state(llm.ctx)

    def put_back(self, text: LiveText) -> None:
        try:
            text.take()
        except SessionEndedError:
            return
        was_begun, text.begun, text.n_keep = text.begun, self._begun, self._n_keep
        if not self._begun:
            text.begin_anew()
        elif self._state is not None and self._give(text, self._state):
            text.n_again, text.n_restored = self._n_again, self._n_restored
            text.ahead = self._ahead.copy()
            text.checkpoints.become(self._checkpoints)
        elif (self._ids < 0).any():
            text.end("it could not be put back, and its images cannot be evaluated again")
        else:
            ids = [*self._ids.tolist(), *self._ahead]
            if was_begun:
                text.change(0, ids)
            else:
                text.begin(ids, self._n_keep)
            text.n_again = max(text.n_again, len(text.ahead) - len(self._ahead))

    def _give(self, text: LiveText, state: bytes) -> bool:
        try:
            (bridge.set_state if self._is_whole else bridge.set_checkpoint)(text.llm.ctx, state)
        except bridge.NativeError as error:
            logger.warning("a text of %d tokens has to be evaluated again: %s", len(self._ids), error)
            return False
        text.holds(self._ids)
        return True
