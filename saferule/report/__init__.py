"""What is shown: `study` for notebooks, `tables` and `figures` of rows, `claims` and their verdicts, `html` pages."""
