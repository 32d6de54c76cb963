"""The one exception for a user's mistake.

The command line prints its message as a single sentence on stderr and exits with status 2; anything
else that escapes is our bug.
"""


class UserError(ValueError):
    """A mistake in the input: the message names the thing, the value and the mend."""
