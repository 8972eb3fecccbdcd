"""What every error that a stranger provokes must be like."""


def require_line(error: Exception, *, longest: int = 600, field: str | None = None, never: str | None = None) -> None:
    """Check that an error is one line for a user.

    Args:
        error: The error.
        longest: Characters that it may have.
        field: The field that it must name; empty for any; None where it names none.
        never: What it must not tell.
    """
    text = str(error)
    assert 10 < len(text) < longest, text
    assert "\n" not in text, text
    assert "Traceback" not in text, text
    named = getattr(error, "field", None)
    assert named == field or (field == "" and named), named
    assert never is None or never not in text, text
