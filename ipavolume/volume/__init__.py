"""What is on a volume: trust, facts, index, history, logs, lock, owners, tree."""
