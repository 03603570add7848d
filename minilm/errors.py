"""The one error that is meant for a person: a sentence on the terminal and exit code 2, never a traceback."""


class UserError(Exception):
    """What was given, what is allowed, what to do, in one sentence."""

    def _render_traceback_(self) -> list[str]:
        """What IPython and notebooks show: the sentence alone, as on the command line."""
        return [f"{type(self).__name__}: {self}"]
