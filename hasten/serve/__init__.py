"""A bundle behind HTTP: requests are planned into batches as they come, over measured costs."""
