"""Errors meant for people: one sentence that says what is wrong, where, and what to do.

Stages and the command line print the sentence without a traceback and leave with `exit_code`,
so that an orchestrator can tell bad parameters from bad data from an interruption.
"""


class MaestroError(Exception):
    """Something the user can mend."""

    exit_code = 1


class ParamsError(MaestroError):
    """params.yaml holds something unknown, ill-typed or impossible."""

    exit_code = 2


class DataError(MaestroError):
    """The source, the shards or the manifest cannot be used, or validation refused them."""

    exit_code = 3


class CheckpointError(MaestroError):
    """A checkpoint or weights file is damaged, foreign, or does not fit the model."""

    exit_code = 4


class DivergedError(MaestroError):
    """Training produced non-finite numbers and could not go on."""

    exit_code = 5


class Interrupted(MaestroError):
    """A signal asked the run to stop; it saved its state first and can be continued."""

    exit_code = 75  # EX_TEMPFAIL: run the same command again
