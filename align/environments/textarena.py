"""Games of textarena for one player, as text environments: `pip install "align[textarena]"`."""

from __future__ import annotations

import random
from typing import Any

import textarena


class TextArena:
    """A game by its id, such as `GuessTheNumber-v0`; `rules` are arguments of its class.

    What the game says is given once, as it comes; wrappers of textarena that repeat the history are passed by, those
    that mend an action are kept. Success is the reward of a won game, 1.
    """

    def __init__(self, game: str, **rules: Any):
        self._wrapped = self._game = textarena.make(game, **rules)
        while isinstance(self._game, textarena.Wrapper):
            self._game = self._game.env

    def reset(self, seed: int | None = None, **row: Any) -> tuple[str, dict]:
        """Begin a game: that of the row's seed, else of the episode's; other columns of the row are not read."""
        self._wrapped.reset(num_players=1, seed=random.getrandbits(31) if seed is None else seed)
        return self._said(), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict]:
        """Make a move. The reward comes with the last one."""
        done, info = self._wrapped.step(action)
        rewards, games = self._wrapped.close() if done else ({0: 0.0}, {0: {}})
        success = {"success": rewards[0] >= 1} if done else {}
        return self._said(), rewards[0], done, False, {**info, **games[0], **success}

    def _said(self) -> str:
        """What the game has said since it was last asked, without the player's own moves."""
        _, messages = self._game.get_observation()
        return "\n".join(text for sender, text, _ in messages if sender == textarena.GAME_ID)
