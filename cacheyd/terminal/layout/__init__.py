"""Images in a tar file: an OCI image layout (image-spec v1.1, image-layout.md), as `ctr`, `skopeo` and `docker` write it.

Knows files and digests only: what is in the cache comes through functions.
"""
