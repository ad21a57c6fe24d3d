"""What is different where systemd is the container's init."""
