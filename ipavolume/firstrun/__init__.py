"""The installer of a fresh volume: how far it is, what it is asked, running it."""
