"""Settings: the table of settings, the parsers of their values, and the rules that consist of patterns."""
