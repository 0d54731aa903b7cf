"""Messages about files, whose content may be as long and as odd as it likes."""

LONGEST_NAME = 300  # of a weight; real ones have less than 100 characters
_LONGEST = 300


def one_line(error: Exception, longest: int = _LONGEST) -> str:
    """Return an error's message as one line of bounded length.

    What libraries raise can quote a file at length, and a file's names can have line breaks.
    """
    message = " ".join(str(error).split()) or type(error).__name__
    return message if len(message) <= longest else f"{message[:longest]}..."
