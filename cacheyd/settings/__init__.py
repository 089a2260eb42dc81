"""Settings: the table, their values, the rules made of patterns."""
