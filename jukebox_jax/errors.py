"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """A mistake in the input, told in one sentence with its cause and its remedy.

    The command line prints it without a traceback and exits with status 2. Raise it before expensive work and
    before anything is written.
    """
