"""The store: content-addressed files, and the rows of the index that describe them."""
