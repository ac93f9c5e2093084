"""Files that are there whole or not at all, and the journal of measurements."""
