"""hasten: the fastest way to run your transformer encoder that still gives the same answers."""
