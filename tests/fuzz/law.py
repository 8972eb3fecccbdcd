"""What every error that a stranger provokes must be like."""


def require_line(error: Exception, longest: int = 600) -> None:
    """Check that an error is one line for a user, and not a long one."""
    text = str(error)
    assert 10 < len(text) < longest, text
    assert "\n" not in text, text
    assert "Traceback" not in text, text
