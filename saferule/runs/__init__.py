"""Runs: what a run is (`spec`), where its results lie (`store`), how missing ones are made (`engine`)."""
