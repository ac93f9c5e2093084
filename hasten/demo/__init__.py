"""What ``hasten demo`` runs on: a classifier trained here, and texts for it."""
