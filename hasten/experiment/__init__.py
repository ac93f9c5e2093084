"""The experiment behind ``hasten bench``: a grid that is measured whole, without a search."""
