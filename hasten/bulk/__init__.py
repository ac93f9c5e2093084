"""Many rows through a bundle: files on one machine or many, and Arrow data in memory."""
