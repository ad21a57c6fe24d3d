"""What tests share and that is not a fixture."""
