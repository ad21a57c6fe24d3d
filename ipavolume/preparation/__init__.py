"""What ``ipavolume prepare`` does to an image: reading packages, moving paths, the manifest."""
