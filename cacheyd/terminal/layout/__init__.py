"""Images in a tar file: an OCI image layout (image-spec v1.1, image-layout.md), as `ctr`, `skopeo` and `docker` write it.

This package knows only files and digests. Its callers give functions for the access to the cache.
"""
