"""Runs: what a run is (`cells`), where its results lie (`store`), how missing ones are made (`engine`)."""
