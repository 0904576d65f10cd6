"""Precision as a property of the graph: casts and Q/DQ nodes, never a builder's flag."""
