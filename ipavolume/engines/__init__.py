"""docker and podman of the host: images, volumes, containers, what a container wrote."""
