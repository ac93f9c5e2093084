"""Smaller models that still agree: parts taken out of a model, and what is left taught by it."""
