"""The search: candidates, worker processes, measurements, and the choice."""
