"""What runs a bundle: batches planned over a measured table, run on streams, put back in order."""
