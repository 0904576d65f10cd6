"""INT8: what is quantised, in which form, and weights that lose less by it."""
