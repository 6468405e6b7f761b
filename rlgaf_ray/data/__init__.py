"""Tasks, prompts and collation."""
