"""A pickle that tells whether it was opened."""

from pathlib import Path


class Bomb:
    """Unpickling it leaves a file behind."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)
