"""What is shown: `study` is the notebooks' face, `tables` and `figures` take rows, `claims` judges, `html` writes pages."""
