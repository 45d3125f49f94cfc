"""The doors: bytes to messages and back; credentials and limits."""
