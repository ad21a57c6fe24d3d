"""What is done to an image when it is built."""
