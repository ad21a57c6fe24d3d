"""What rpm knows and does: versions, fates, readers, scriptlets. The only importer of rpmfile."""
