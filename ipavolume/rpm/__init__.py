"""What rpm knows and does: versions, readers, scriptlets. The only importer of rpmfile."""
