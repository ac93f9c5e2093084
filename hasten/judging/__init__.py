"""Whether answers are still the original's, and how sure that is; pure numpy."""
