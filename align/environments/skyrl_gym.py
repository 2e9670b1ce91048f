"""Environments of skyrl-gym as text environments: `pip install "align[skyrl-gym]"`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import skyrl_gym


class SkyRLGym:
    """An environment by its id, such as `gsm8k_multi_turn`; `config` is its `env_config`.

    skyrl-gym makes one for each episode, from the columns of the row. It says nothing of success or of being cut short.
    """

    def __init__(self, id: str, config: Mapping[str, Any] | None = None):
        self._id, self._config, self._env = id, config, None

    def reset(self, prompt: list[dict], **row: Any) -> tuple[str, dict]:
        """Begin an episode. Raises `ValueError` for an environment that writes another prompt than the row's."""
        if self._env:
            self._env.close()
        self._env = skyrl_gym.make(self._id, env_config=self._config, extras=row)
        messages, info = self._env.init(prompt)
        if messages != prompt:
            raise ValueError(f"{self._id} writes another prompt than the row's, which cannot be followed")
        return "", info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict]:
        """Do what the policy said. `postprocessed_action` is not read: what was sampled stays as it is."""
        out = self._env.step(action)
        text = "\n".join(message["content"] for message in out["observations"])
        return text, out["reward"], out["done"], False, out["metadata"]
