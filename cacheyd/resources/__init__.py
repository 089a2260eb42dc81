"""What peers may cost: memory, turns, CPU, open files."""
