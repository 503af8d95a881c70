"""Text that comes as bytes."""


def require_utf8(text: bytes, what: str = "a text") -> bytes:
    """The same bytes. Raises ValueError, which names the first that is no UTF-8."""
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        at = f"0x{text[error.start]:02x} at byte {error.start} of {len(text)}"
        raise ValueError(f"{what} must be UTF-8, got {at} ({error.reason})") from None
    return text
