"""The image's configuration and path lists; releases. The only importer of packaging."""
