"""Rows of results become what is shown: `labels` (names, colours), `tables`, `comparison` (the paper's), `figures`."""
