"""Tasks, data sources, prompt streams, collation and storage."""
