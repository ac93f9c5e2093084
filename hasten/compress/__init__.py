"""Smaller models that still agree: pruned, then trained on the original's answers."""
