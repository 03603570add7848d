"""The one error that is meant for a person: a sentence on the terminal and exit code 2, never a traceback."""


class UserError(Exception):
    """What was given, what is allowed, what to do, in one sentence."""
