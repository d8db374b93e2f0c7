"""Data sets as values: records, splits, and what is done to labels and class sizes."""
