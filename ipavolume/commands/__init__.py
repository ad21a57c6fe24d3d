"""What each command does, as a function that returns data."""
