"""What is kept: content-addressed files, and the rows that say what they are."""
