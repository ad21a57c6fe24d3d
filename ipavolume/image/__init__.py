"""An image's tree, id, manifest, release and accounts."""
