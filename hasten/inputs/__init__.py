"""What hasten reads: texts and labels out of files, and tokens out of texts."""
