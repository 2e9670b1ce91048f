"""An environment that is there for the cost of a round; its process imports nothing else."""


class Talk:
    """Always wants to hear more."""

    def reset(self, **row):
        return "Tell me a long story about a dog.", {}

    def step(self, action):
        return "Go on.", 0.0, False, False, {}
