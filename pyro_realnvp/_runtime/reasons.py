"""What code raises that is given values from a file, and the reason that such an error tells as the end of a sentence.

Nothing is known of these values but that they are JSON and tensors.
"""

#: Whatever a constructor, or the loading of a state, in torch or in a class of the user's, may raise.
ERRORS = (
    *(ValueError, TypeError, LookupError, AttributeError, AssertionError),
    *(RuntimeError, ArithmeticError, MemoryError),
)
_LONGEST = 400


def reason(error: BaseException) -> str:
    """Returns the message of an error in one line, which ends with a full stop.

    Errors of Python itself, such as a KeyError whose message is the key alone, begin with their type.
    """
    text = "".join(each if each.isprintable() else " " for each in str(error))
    text = " ".join(text.split())
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]} and so on"
    if not text or not isinstance(error, ValueError | RuntimeError):
        text = f"{type(error).__name__}{f': {text}' if text else ''}"
    return text if text.endswith(".") else f"{text.rstrip(':')}."
