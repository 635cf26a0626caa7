"""What the project promises to survive, as rows that anyone can repeat."""
