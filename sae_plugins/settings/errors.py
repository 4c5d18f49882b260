"""What a command says where the user asked for something that cannot be done."""


class UsageError(Exception):
    """The user asked for something that cannot be done; the message says what to do instead."""

    exit_code = 2
