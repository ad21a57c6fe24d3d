"""From what a volume is and an image ships to what is to be done. Changes nothing."""
