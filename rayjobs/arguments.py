"""The parser of the small commands, which have no model of their options: its errors are one line, as the jobs' are."""

import argparse
from typing import NoReturn


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that says what is wrong without its usage."""

    def error(self, message: str) -> NoReturn:
        """End the process with exit code 2.

        Args:
            message: What is wrong.
        """
        self.exit(2, f"{self.prog.removesuffix('.py')}: error: {message}; see --help\n")
