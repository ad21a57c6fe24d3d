"""System calls made safe. The only folder that changes files or starts processes."""
