"""Chat: tools and messages."""
