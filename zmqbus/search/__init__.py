"""Full-text search in messages.log."""
